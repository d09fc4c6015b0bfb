"""Sources: public formats with several responses per prompt, and formats of the user's own."""

import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from mrt_plugin.extension import extension_files, load_extension
from mrt_plugin.groups.adapters.adapter import Adapter

_HERE = "mrt_plugin.groups.adapters"
SOURCES = {
    "ultrafeedback": f"{_HERE}.pools:ultrafeedback",
    "nectar": f"{_HERE}.transcripts:nectar",
    "helpsteer2": f"{_HERE}.transcripts:helpsteer2",
    "hh_rlhf": f"{_HERE}.transcripts:hh_rlhf",
    "gold_labelled": f"{_HERE}.pools:gold_labelled",
    "code_contests": f"{_HERE}.pools:code_contests",
    "mosaic_1k": f"{_HERE}.pools:mosaic_1k",
    "openr1": f"{_HERE}.pools:openr1",
    "helpsteer3": f"{_HERE}.conversations:helpsteer3",
    "oasst2": f"{_HERE}.trees:oasst2",
    "trl_preference": f"{_HERE}.pools:trl_preference",
    "trl_completion": f"{_HERE}.pools:trl_completion",
    "sharegpt": f"{_HERE}.conversations:sharegpt",
    "alpaca": f"{_HERE}.pools:alpaca",
    "alpaca_eval": f"{_HERE}.pools:alpaca_eval",
    "gsm8k_solutions": f"{_HERE}.pools:gsm8k_solutions",
    "fields": f"{_HERE}.fields:fields",
}
"""All sources by name. To add one, write a function in a file here, and add its line."""

_OUTSIDE = re.compile(r"(.+?:[^\W\d]\w*)(?::(.*=.*))?")
"""A user's own source: `file.py:name` or `package.module:name`, then maybe `:option=value,option=value`."""


@cache
def all_sources() -> tuple[Adapter, ...]:
    return tuple(map(load_extension, SOURCES.values()))


def parse_source(source: str) -> tuple[Adapter, dict[str, Any]]:
    """Return the adapter and the checked options of `NAME:option=value,option=value`, or raise ValueError."""
    if not isinstance(source, str):
        raise ValueError(f"source={source!r} must be a string, for instance 'nectar' or 'code_contests:language=cpp'.")
    name, _, options = source.partition(":")
    name = name.strip()
    if name in SOURCES:
        adapter = load_extension(SOURCES[name])
    elif outside := _OUTSIDE.fullmatch(source):
        name, options = outside.groups("")
        try:
            found = load_extension(name)
        except ValueError as problem:
            raise ValueError(f"source {problem} The sources of the package are {', '.join(SOURCES)}.") from None
        if not isinstance(found, Adapter) and not callable(found):
            raise ValueError(f"source {name!r} is no function. Write one that takes a row and yields groups.")
        adapter = found if isinstance(found, Adapter) else Adapter(name, found)
    else:
        meant = "".join(f" Did you mean {close!r}?" for close in get_close_matches(name, SOURCES, n=1))
        known = f"{', '.join(SOURCES)}, or your own as file.py:name"
        raise ValueError(f"source={name!r} is unknown.{meant} Known: {known}.")
    return adapter, adapter.parse_options(options)


def source_files(source: str | None) -> list[Path]:
    """Return the files that a user's own source is written in. None for a source of the package."""
    outside = None if source is None or source.partition(":")[0] in SOURCES else _OUTSIDE.fullmatch(source)
    return extension_files(outside[1]) if outside else []


def native_source(row: dict[str, Any]) -> str | None:
    """Return the source of a row whose format is read without a name, or None for groups and flat rows."""
    if {"prompt", "messages"} & row.keys():
        return None
    return next((name for name in ("alpaca", "sharegpt") if parse_source(name)[0].reads(row)), None)
