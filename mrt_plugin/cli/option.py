"""Checks of single command-line options, made before a command starts.

Help and bounds of training options come from `mrt_plugin.options`.
"""

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import typer

from mrt_plugin.options import Bounds, MultiResponseOptions
from mrt_plugin.places import check_data, check_file, check_folder, check_model

_FIELDS = {item.name: item for item in dataclasses.fields(MultiResponseOptions)}

Check = Callable[[Any], None]
"""Raises ValueError for a value that cannot be."""


def of(name: str, callback: Callable[[Any], Any] | None = None) -> Any:
    """The `typer.Option` of the training option of that name."""
    metadata = _FIELDS[name].metadata
    return typer.Option(help=metadata["help"], callback=callback or within(**dataclasses.asdict(metadata["bounds"])))


def checked(check: Check) -> Callable[[Any], Any]:
    """A callback for `typer.Option` that checks a value, or each of several, where there is one."""

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
    """A callback that refuses numbers out of their `Bounds`, NaN and infinity among them."""
    limits = Bounds(**bounds)

    def check(value: Any) -> None:
        if isinstance(value, int | float) and not limits.holds(value):
            raise ValueError(f"{value} must be a finite number, {limits}.")

    return checked(check)


def report_file(*endings: str) -> Callable[[Any], Any]:
    """A callback for a file with pictures: found out before the work are a wrong ending and a missing matplotlib."""

    def check(path: Any) -> None:
        if endings and Path(path).suffix not in endings:
            raise ValueError(f"{path} must end in one of {', '.join(endings)}.")
        if find_spec("matplotlib") is None:
            raise ValueError("pictures need matplotlib: pip install 'mrt-plugin[plots]'.")

    return checked(check)


def _check_budget(text: str) -> None:
    from mrt_plugin.planning.budget import parse_budget

    parse_budget(text, 1.0)


budget_text = checked(_check_budget)


def one_of(literal: Any) -> Callable[[Any], Any]:
    """A callback that refuses all but the values of a `Literal`, for options that may be repeated."""

    def check(value: str) -> None:
        if value not in get_args(literal):
            raise ValueError(f"{value} is unknown: choose one of {', '.join(get_args(literal))}.")

    return checked(check)


def _check_named_model(text: str) -> None:
    from mrt_plugin.models.named_model import check_folders, parse_models

    check_folders(parse_models([text]))


existing_file = checked(check_file)
existing_folder = checked(check_folder)
existing_data = checked(check_data)
existing_base = checked(check_model)
existing_model = checked(_check_named_model)
existing_adapter = checked(lambda name: check_model(name, "adapter_config.json"))
existing_tokenizer = checked(lambda name: check_model(name, None))


def _check_embedder(name: str) -> None:
    if name not in ("lexical", "sentence-transformers", "none"):
        check_model(name, None)


def _check_scorer(names: str) -> None:
    for name in filter(None, (part.strip() for part in names.split(","))):
        place, colon, _ = name.rpartition(":")
        if not colon:
            check_model(name)
        elif place.endswith(".py"):
            check_file(place)


existing_embedder = checked(_check_embedder)
existing_scorer = checked(_check_scorer)
