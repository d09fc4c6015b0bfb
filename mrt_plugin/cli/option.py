"""Define the options of commands, and check each value before a command starts.

Types, defaults, help and bounds of training options come from `mrt_plugin.options`.
"""

from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, field, fields
from functools import wraps
from importlib.util import find_spec
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mrt_plugin.extension import is_extension
from mrt_plugin.models.named_model import check_folders, parse_models
from mrt_plugin.options import Bounds, MultiResponseOptions, check_prefix_backend
from mrt_plugin.places import check_data, check_file, check_folder, check_model


def flag(
    default: Any, help: str, check: str | None = None, *names: str, min: int | None = None, **bounds: float
) -> Any:
    """Define a field that is an option, with a check of `CHECKS` or `Bounds`. With `...` as default it is required."""
    callback = _checked(CHECKS[check]) if check else _within(**bounds) if bounds else None
    return _field(default, typer.Option(*names, help=help, callback=callback, min=min))


def switch(name: str, help: str) -> Any:
    """Define a field that is an option without a value."""
    return flag(False, help, None, name)


def argument(default: Any, help: str, check: str) -> Any:
    """Define a field that is an argument without a name."""
    return _field(default, typer.Argument(help=help, callback=_checked(CHECKS[check])))


def training(name: str) -> Any:
    """Define a field that is the training option `name`."""
    item = MultiResponseOptions.__dataclass_fields__[name]
    return field(default=item.default, metadata=item.metadata)


def _field(default: Any, made: Any) -> Any:
    return field(default=MISSING if default is ... else default, metadata={"typer": made})


def command(own: type, *parts: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a function of the options `own`, so that Typer takes them by the names of the fields.

    The options of `parts` that `own` does not define come as keyword arguments.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(**given: Any) -> None:
            mine = {item.name: given.pop(item.name) for item in fields(own)}
            function(own(**mine), **given)

        found: dict[str, Parameter] = {}
        for part in (own, *parts):
            hints = get_type_hints(part)
            for item in fields(part):
                if {"typer", "bounds"} & {*item.metadata} and item.name not in found:
                    hint: Any = Annotated[hints[item.name], _typer(item)]  # type: ignore[valid-type,name-defined]
                    default = Parameter.empty if item.default is MISSING else item.default
                    found[item.name] = Parameter(item.name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        run.__signature__ = Signature(list(found.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in found.items()}
        return run

    return decorate


def _typer(item: Field[Any]) -> Any:
    """Return the `typer.Option` of a field of a command, or of an `option` of another room."""
    if "typer" in item.metadata:
        return item.metadata["typer"]
    check = item.name in CHECKS
    callback = _checked(CHECKS[item.name]) if check else _within(**asdict(item.metadata["bounds"]))
    names = [f"--{item.name.replace('_', '-')}"] if item.type is bool else []
    return typer.Option(*names, help=item.metadata["help"], callback=callback)


def part_of(part: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return those of the options that are fields of a dataclass."""
    return {item.name: options[item.name] for item in fields(part) if item.name in options}


def _checked(check: Callable[[Any], None]) -> Callable[[Any], Any]:
    """Return a callback for Typer that checks a value, or each of several, unless it is None."""

    def callback(value: Any) -> Any:
        try:
            for one in value if isinstance(value, list) else [value]:
                if one is not None:
                    check(one)
        except ValueError as problem:
            raise typer.BadParameter(str(problem)) from None
        return value

    return callback


def _within(**bounds: float) -> Callable[[Any], Any]:
    limits = Bounds(**bounds)

    def check(value: Any) -> None:
        if isinstance(value, int | float) and not limits.holds(value):
            raise ValueError(f"{value} must be a finite number, {limits}.")

    return _checked(check)


def numbers(text: str, refusal: str) -> list[int]:
    """Return the whole numbers, at least 1, of a text with commas. `refusal` is the message for any other text."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if min(found, default=0) < 1:
        raise ValueError(refusal)
    return found


def _check_budget(text: str) -> None:
    from mrt_plugin.planning.budget import parse_budget

    parse_budget(text, 1.0)


def _check_code(name: str) -> None:
    """Check that the file of a user's `file.py:name` exists."""
    place = name.rpartition(":")[0]
    if is_extension(name) and place.endswith(".py"):
        check_file(place)


def _check_scorer(names: str) -> None:
    for name in filter(None, map(str.strip, names.split(","))):
        (_check_code if ":" in name else check_model)(name)


def _check_report(path: Path) -> None:
    if find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib: pip install 'mrt-plugin[plots]'.")


def _check_picture(path: Path) -> None:
    if path.suffix not in PICTURES:
        raise ValueError(f"{path} must end in one of {', '.join(PICTURES)}.")
    _check_report(path)


PICTURES = (".png", ".svg", ".pdf")
PROVIDED = ("lexical", "sentence-transformers", "none")

CHECKS: dict[str, Callable[[Any], None]] = {
    "adapter": lambda name: check_model(name, "adapter_config.json"),
    "backend": check_prefix_backend,
    "base": check_model,
    "budget": _check_budget,
    "data": check_data,
    "embedder": lambda name: None if name in PROVIDED else check_model(name, None),
    "file": check_file,
    "folder": check_folder,
    "model": lambda text: check_folders(parse_models([text])),
    "picture": _check_picture,
    "report": _check_report,
    "scorer": _check_scorer,
    "selector": _check_code,
    "tokenizer": lambda name: check_model(name, None),
}
"""Raise ValueError for a value that cannot be meant. Also for the training options of these names."""
