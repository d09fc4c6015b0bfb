"""Check single command-line options before a command starts.

Types, defaults, help and bounds of training options come from `mrt_plugin.options`.
"""

from collections.abc import Callable
from dataclasses import Field, asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from mrt_plugin.extension import is_extension
from mrt_plugin.options import Bounds, MultiResponseOptions, take_options
from mrt_plugin.places import check_data, check_file, check_folder, check_model

_FIELDS = {item.name: item for item in fields(MultiResponseOptions)}

Check = Callable[[Any], None]
"""Raises ValueError for a value that is not allowed."""


def of(item: str | Field[Any]) -> Any:
    """Return the `typer.Option` of a training option, or of another field with help and bounds."""
    found = _FIELDS[item] if isinstance(item, str) else item
    callback = _EARLY.get(found.name) or within(**asdict(found.metadata["bounds"]))
    flags = [f"--{found.name.replace('_', '-')}"] if found.type is bool else []
    return typer.Option(*flags, help=found.metadata["help"], callback=callback)


def default(name: str) -> Any:
    """Return the default of the training option of that name."""
    return _FIELDS[name].default


def with_options(part: type) -> Callable[[Any], Any]:
    """Decorate a command that takes `**options`, so that it has the options of a dataclass."""
    return take_options(part, lambda item, hint: Annotated[hint, of(item)])


def part_of(part: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return those of the options that are fields of a dataclass."""
    return {item.name: options[item.name] for item in fields(part) if item.name in options}


def checked(check: Check) -> Callable[[Any], Any]:
    """Return a callback for `typer.Option` that checks a value, or each of several, unless it is None."""

    def callback(value: Any) -> Any:
        try:
            for one in value if isinstance(value, list) else [value]:
                if one is not None:
                    check(one)
        except ValueError as problem:
            raise typer.BadParameter(str(problem)) from None
        return value

    return callback


def within(**bounds: float) -> Callable[[Any], Any]:
    """Return a callback that refuses numbers outside their `Bounds`, including NaN and infinity."""
    limits = Bounds(**bounds)

    def check(value: Any) -> None:
        if isinstance(value, int | float) and not limits.holds(value):
            raise ValueError(f"{value} must be a finite number, {limits}.")

    return checked(check)


def report_file(*endings: str) -> Callable[[Any], Any]:
    """Return a callback for a file with pictures, which refuses a wrong ending and a missing matplotlib."""

    def check(path: Any) -> None:
        if endings and Path(path).suffix not in endings:
            raise ValueError(f"{path} must end in one of {', '.join(endings)}.")
        if find_spec("matplotlib") is None:
            raise ValueError("pictures need matplotlib: pip install 'mrt-plugin[plots]'.")

    return checked(check)


def one_of(literal: Any) -> Callable[[Any], Any]:
    """Return a callback that refuses all but the values of a `Literal`, for options that may be repeated."""

    def check(value: str) -> None:
        if value not in get_args(literal):
            raise ValueError(f"{value} is unknown: choose one of {', '.join(get_args(literal))}.")

    return checked(check)


def _check_budget(text: str) -> None:
    from mrt_plugin.planning.budget import parse_budget

    parse_budget(text, 1.0)


def _check_named_model(text: str) -> None:
    from mrt_plugin.models.named_model import check_folders, parse_models

    check_folders(parse_models([text]))


def _check_embedder(name: str) -> None:
    if name not in ("lexical", "sentence-transformers", "none"):
        check_model(name, None)


def _check_code(name: str) -> None:
    """Check that the file of a user's `file.py:name` exists."""
    place = name.rpartition(":")[0]
    if is_extension(name) and place.endswith(".py"):
        check_file(place)


def _check_scorer(names: str) -> None:
    for name in filter(None, (part.strip() for part in names.split(","))):
        if ":" in name:
            _check_code(name)
        else:
            check_model(name)


budget_text = checked(_check_budget)
existing_file = checked(check_file)
existing_folder = checked(check_folder)
existing_data = checked(check_data)
existing_base = checked(check_model)
existing_model = checked(_check_named_model)
existing_adapter = checked(lambda name: check_model(name, "adapter_config.json"))
existing_tokenizer = checked(lambda name: check_model(name, None))
existing_embedder = checked(_check_embedder)
existing_scorer = checked(_check_scorer)

_EARLY = {"selector": checked(_check_code), "embedder": existing_embedder, "scorer": existing_scorer}
"""Checks of options that name a place."""
