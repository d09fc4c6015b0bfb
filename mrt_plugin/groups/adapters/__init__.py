"""Adapters that read public formats with several responses per prompt."""

from collections.abc import Iterable, Iterator
from typing import Any, get_type_hints

from mrt_plugin.groups.adapters.adapter import Adapter, Mismatch, check_row, read_adapted
from mrt_plugin.groups.adapters.alpaca import ALPACA, ALPACA_EVAL
from mrt_plugin.groups.adapters.code_contests import CODE_CONTESTS
from mrt_plugin.groups.adapters.fields import FIELDS
from mrt_plugin.groups.adapters.gold_labelled import GOLD_LABELLED
from mrt_plugin.groups.adapters.gsm8k_solutions import GSM8K_SOLUTIONS
from mrt_plugin.groups.adapters.helpsteer2 import HELPSTEER2
from mrt_plugin.groups.adapters.hh_rlhf import HH_RLHF
from mrt_plugin.groups.adapters.mosaic import MOSAIC_1K
from mrt_plugin.groups.adapters.nectar import NECTAR
from mrt_plugin.groups.adapters.spec import parse_source
from mrt_plugin.groups.adapters.trl import TRL_COMPLETION, TRL_PREFERENCE
from mrt_plugin.groups.adapters.ultrafeedback import ULTRAFEEDBACK
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.report import GroupReport
from mrt_plugin.groups.shapes import RawGroup
from mrt_plugin.groups.sources import Row
from mrt_plugin.groups.unused import PAIR, POOLS

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        ULTRAFEEDBACK,
        NECTAR,
        HELPSTEER2,
        HH_RLHF,
        GOLD_LABELLED,
        CODE_CONTESTS,
        MOSAIC_1K,
        TRL_PREFERENCE,
        TRL_COMPLETION,
        ALPACA,
        ALPACA_EVAL,
        GSM8K_SOLUTIONS,
        FIELDS,
    )
}
"""All sources by name. To add one, write its file and add a line here."""

PROMPTS = ("prompt", "instruction", "question", "problem", "query")
"""Common names of columns that hold a complete prompt."""

__all__ = ["ADAPTERS", "check_source", "guess_source", "how_to_read", "native_source", "read_source"]


def check_source(source: str) -> None:
    """Check the name and the options of a source without reading any data.

    Raises:
        ValueError: for an unknown source (lists the known ones), an unknown option or an invalid value.

    Example:

    >>> check_source("code_contests:language=cpp")
    """
    parse_source(source, ADAPTERS)


def read_source(rows: Iterable[Row], source: str, problems: Problems, report: GroupReport) -> Iterator[RawGroup]:
    """Yield groups from the rows of a named source."""
    adapter, options = parse_source(source, ADAPTERS)
    return read_adapted(rows, adapter, options, problems, report, guess_source, how_to_read)


def native_source(row: dict[str, Any]) -> str | None:
    """Return the source that needs no name, if the row has its fields and those of no other source."""
    alpaca = {"instruction", "output"} <= row.keys() and not {"prompt", "messages"} & row.keys()
    return ALPACA.name if alpaca and _fits(row, ALPACA) else None


def guess_source(row: dict[str, Any]) -> str:
    """Return a sentence that names the sources whose fields the row has, or an empty string.

    Example:

    >>> guess_source({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"})
    " It has the fields of source 'hh_rlhf' or 'trl_preference'."
    """
    fitting = [adapter for adapter in ADAPTERS.values() if adapter.row is not None and _fits(row, adapter)]
    most = max((len(adapter.row.__required_keys__) for adapter in fitting), default=0)
    # An HH-RLHF row is also a TRL preference row. If several sources match equally well, name all of them.
    names = [repr(adapter.name) for adapter in fitting if len(adapter.row.__required_keys__) == most]
    return f" It has the fields of source {' or '.join(names)}." if names else ""


def how_to_read(row: dict[str, Any], column: str) -> str:
    """Return a sentence that names the source, or the `fields:` form, that reads a column of the row.

    Example:

    >>> how_to_read({"problem": "2 + 2?", "generations": ["4", "5"], "messages": []}, "generations")
    "Read the pool with source='fields:prompt=problem,responses=generations'."
    """
    fitting = [
        adapter.name
        for adapter in ADAPTERS.values()
        if adapter.row is not None and column in get_type_hints(adapter.row) and _fits(row, adapter)
    ]
    if fitting:
        return f"Read it with source={' or '.join(map(repr, fitting))}."
    prompt = next((name for name in PROMPTS if isinstance(row.get(name), str)), None)
    if column.casefold() in POOLS and prompt is not None:
        return f"Read the pool with source='fields:prompt={prompt},responses={column}'."
    advice = "No source reads it: write it into the prompt, or remove the column."
    if column.casefold() in POOLS | PAIR:
        advice = "No source reads it: make it the column `responses`, or remove it."
    for ours in ("responses", "completion"):
        if prompt is not None and ours in row:
            advice += f" To leave it out on purpose: source='fields:prompt={prompt},{ours}={ours}'."
    return advice


def _fits(row: dict[str, Any], adapter: Adapter) -> bool:
    try:
        check_row(row, adapter.row)
    except Mismatch:
        return False
    return True
