"""The class of a source: a function from a row of a public format to rows that `load_groups` reads."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Parameter, signature
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from mrt_plugin.groups.messages import kind


@dataclass(frozen=True)
class LeftOut:
    """Something in a row that is skipped on purpose. It is counted under `what`, a plural noun."""

    what: str


class Mismatch(Exception):
    """A row does not match the format of its source. Names the field and the problem."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.name, self.what = name, what


COMMON: dict[str, tuple[Any, Any]] = {"category": (str, "")}
"""The option of all sources: the field with the category of a group, for `mix_categories`."""

Converted = Iterator[dict[str, Any] | LeftOut]
"""Rows that `load_groups` reads without a source (`prompt` with `responses` or `completion`), and skipped parts."""


@dataclass(frozen=True)
class Adapter:
    """One format. Made by the decorator `adapter`, or from a user's own function."""

    name: str
    convert: Callable[..., Converted]
    """Converts one checked row. Its keyword-only arguments are the options of the source."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The format's own names for `prompt`, `responses`, `scores` and `weights`, for error messages."""
    together: str = ""
    """A field: all rows with the same value of it are converted at once, as a list. Empty: each row by itself."""

    @cached_property
    def row(self) -> Any:
        """The `TypedDict` of the fields that are read: the type of the function's first argument. None for others."""
        hint = get_type_hints(self.convert).get(next(iter(signature(self.convert).parameters)))
        if self.together:
            (hint,) = get_args(hint)
        return hint if is_typeddict(hint) else None

    @cached_property
    def _validator(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.row)

    @cached_property
    def options(self) -> dict[str, tuple[Any, Any]]:
        """The type and default of each option: the function's own, and the common ones."""
        hints = get_type_hints(self.convert, include_extras=True)
        own = {
            name: (hints.get(name, str), parameter.default)
            for name, parameter in signature(self.convert).parameters.items()
            if parameter.kind is Parameter.KEYWORD_ONLY
        }
        return own | COMMON

    def parse_options(self, text: str) -> dict[str, Any]:
        """Return the options written as `option=value,option=value`, or raise ValueError with what is allowed."""
        checked = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            option, equals, value = (word.strip() for word in part.partition("="))
            if not equals:
                raise ValueError(f"source {self.name!r}: write option=value, not {part!r}. {self._described()}")
            if option not in self.options:
                raise ValueError(f"source {self.name!r} has no option {option!r}. {self._described()}")
            try:
                checked[option] = TypeAdapter(self.options[option][0]).validate_strings(value)
            except ValidationError as error:
                what = error.errors()[0]["msg"]
                raise ValueError(f"source {self.name!r}: {option}={value!r} is invalid: {what}.") from None
        needed = [name for name, (_, default) in self.options.items() if default is Parameter.empty]
        if missing := [name for name in needed if name not in checked]:
            raise ValueError(f"source {self.name!r} needs {', '.join(missing)}. {self._described()}")
        return checked

    def _described(self) -> str:
        described = []
        for name, (hint, default) in self.options.items():
            values = "|".join(get_args(hint)) if get_origin(hint) is Literal else "..."
            described.append(f"{name}={values}" + f" (default {default})" * (default not in (Parameter.empty, "")))
        return f"Its options: {', '.join(described)}." if described else "It has none."

    def check_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a row that are read, or raise Mismatch for the first that is missing or wrong."""
        if self.row is None:
            return row
        try:
            return dict(self._validator.validate_python(row))
        except ValidationError as error:
            raise _mismatch(error, row) from None

    def reads(self, row: dict[str, Any]) -> bool:
        """Return whether a row has all fields that this format must have, of whatever types."""
        return self.row is not None and bool(self.row.__required_keys__ <= row.keys())

    def fits(self, row: dict[str, Any]) -> bool:
        """Return whether a row has the fields of this format, with their types."""
        with suppress(ValidationError):
            return self.row is not None and bool(self._validator.validate_python(row))
        return False


def adapter(*, together: str = "", **columns: str) -> Callable[[Callable[..., Converted]], Adapter]:
    """Make a source of the decorated function, named like the function. See the fields of `Adapter`."""
    return lambda convert: Adapter(convert.__name__, convert, columns, together)


def _mismatch(error: ValidationError, row: dict[str, Any]) -> Mismatch:
    """Convert the first pydantic error to a `Mismatch` that also names the other types the field may have."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    steps = _steps(first["loc"], row)
    name = str(steps[0]) if steps else "row"
    if first["type"] == "missing":
        if len(steps) == 1:
            return Mismatch(name, "the field is missing.")
        found = ", ".join(f"`{key}`" for key in first["input"]) or "no fields"
        return Mismatch(name, f"`{_path(steps[:-1])}` has no `{steps[-1]}`; it has {found}.")
    allowed = [other["msg"].removeprefix("Input should be ") for other in errors if _steps(other["loc"], row) == steps]
    return Mismatch(name, f"`{_path(steps)}` is {kind(first['input'])}, but it must be {' or '.join(allowed)}.")


def _steps(location: tuple[int | str, ...], row: dict[str, Any]) -> list[int | str]:
    """Return the keys and indices of an error's location, without the union branches that pydantic adds."""
    steps: list[int | str] = []
    value: Any = row
    for step in location:
        if (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int)):
            value = value[step]  # type: ignore[index]
        elif not (isinstance(value, dict) and step == location[-1]):
            continue
        steps.append(step)
    return steps


def _path(steps: list[int | str]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return path.removeprefix(".")


def field_names(shape: Any) -> str:
    """Name the fields of a `TypedDict` that a row must have, and the fields inside them."""
    named = []
    for name, hint in get_type_hints(shape).items():
        inner = get_args(hint)[0] if get_origin(hint) is list else hint
        inside = is_typeddict(inner) and field_names(inner)
        if name in shape.__required_keys__:
            named.append(f"`{name}`" + (f" ({'with' if inner is hint else 'each with'} {inside})" if inside else ""))
    return ", ".join(named)
