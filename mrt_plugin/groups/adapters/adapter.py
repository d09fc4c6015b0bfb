"""The adapter class, and reading rows of another format through an adapter."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from mrt_plugin.groups.messages import kind
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.report import GroupReport, Tally
from mrt_plugin.groups.shapes import GROUPED, RawGroup, read_raw_groups
from mrt_plugin.groups.sources import Row
from mrt_plugin.groups.unused import Remedy, Unused


@dataclass(frozen=True)
class LeftOut:
    """Something in a row that is skipped on purpose. It is counted under `what`, a plural noun."""

    what: str


class Mismatch(Exception):
    """A row does not match the format of its source. Names the field and the problem."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.name, self.what = name, what


Converted = Iterator[dict[str, Any] | LeftOut]
"""Rows that `load_groups` reads without a source (`prompt` with `responses` or `completion`), and skipped parts."""


@dataclass(frozen=True)
class Adapter:
    """One public format.

    To add one, write a file with a `TypedDict` of the fields it reads and a function. Then add a line to the registry.
    """

    name: str
    about: str
    """One line that describes the data and its scores."""
    row: Any
    """A `TypedDict` of the fields that are read. For other fields see `mrt_plugin.groups.unused`."""
    convert: Callable[..., Converted]
    """Converts one checked row to rows in our format. Its keyword arguments are the options of the source."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The format's own names for `prompt`, `responses`, `scores` and `weights`, for error messages."""


def read_adapted(
    rows: Iterable[Row],
    adapter: Adapter,
    options: Mapping[str, Any],
    problems: Problems,
    report: GroupReport,
    guess: Callable[[dict[str, Any]], str],
    remedy: Remedy,
) -> Iterator[RawGroup]:
    """Yield groups from rows in the adapter's format. Record problems with their place, and count what is skipped.

    Args:
        rows: rows of the source, with their places.
        adapter: reads the rows.
        options: keyword arguments of `adapter.convert`.
        problems: collects the problems. If the first row has another format, the error is raised at once.
        report: counts what is skipped.
        guess: returns a sentence that names other sources that match a row, or an empty string.
        remedy: returns a sentence that explains how to read a column that the adapter skips.
    """
    if adapter.row is None:  # the user named the fields to read, so the others are skipped on purpose
        names = {part for name in map(str, options.values()) for part in (name, name.split(".")[0])}
        unused = Unused(names, problems, report)
    else:
        unused = Unused(get_type_hints(adapter.row), problems, report, remedy)
    converted = _convert_all(rows, adapter, options, problems, report, guess, unused)
    for group in read_raw_groups(converted, problems, report):
        group.columns = {**{name: name for name in GROUPED}, **adapter.columns}
        yield group


def _convert_all(
    rows: Iterable[Row],
    adapter: Adapter,
    options: Mapping[str, Any],
    problems: Problems,
    report: GroupReport,
    guess: Callable[[dict[str, Any]], str],
    unused: Unused,
) -> Iterator[Row]:
    first = True
    for place, row in rows:
        try:
            checked = check_row(row, adapter.row)
            unused.look(place, row)
            for item in adapter.convert(checked, **options):
                if isinstance(item, LeftOut):
                    report.left_out.setdefault(item.what, Tally()).add(place)
                else:
                    yield place, item
        except Mismatch as mismatch:
            if first:
                found = ", ".join(f"`{name}`" for name in row) or "none"
                expected = f"source {adapter.name!r} expects {describe(adapter.row)}" if adapter.row else ""
                problems.fail(
                    f"{expected or f'source {adapter.name!r} was told other fields'}; {place} has {found}. "
                    f"`{mismatch.name}`: {mismatch.what}{guess(row)}"
                )
            problems.add(place, mismatch.name, mismatch.what)
        first = False


def check_row(row: dict[str, Any], shape: Any) -> dict[str, Any]:
    """Check and return the fields of a row that `shape` (a `TypedDict`) defines.

    Raises:
        Mismatch: for the first field that is missing or has another type.
    """
    if shape is None:
        return row
    try:
        return dict(_checker(shape).validate_python(row))
    except ValidationError as error:
        raise _mismatch(error, row) from None


@cache
def _checker(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _mismatch(error: ValidationError, row: dict[str, Any]) -> Mismatch:
    """Convert the first pydantic error to a `Mismatch` that also names the other types the field may have."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    steps = _steps(first["loc"], row)
    name = str(steps[0]) if steps else "row"
    if first["type"] == "missing":
        holder = first["input"]
        if len(steps) == 1:
            return Mismatch(name, "the field is missing.")
        found = ", ".join(f"`{key}`" for key in holder) if isinstance(holder, dict) else kind(holder)
        return Mismatch(name, f"`{_path(steps[:-1])}` has no `{steps[-1]}`; it has {found or 'no fields'}.")
    allowed = [other["msg"].removeprefix("Input should be ") for other in errors if _steps(other["loc"], row) == steps]
    return Mismatch(name, f"`{_path(steps)}` is {kind(first['input'])}, where {' or '.join(allowed)} belongs.")


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
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def describe(shape: Any) -> str:
    """Describe in words the fields of a `TypedDict` that a row must have.

    Example:

    >>> from typing_extensions import TypedDict
    >>> Answer = TypedDict("Answer", {"answer": str, "rank": float})
    >>> describe(TypedDict("Row", {"prompt": str, "answers": list[Answer]}))
    'the fields `prompt`, `answers` (each with `answer`, `rank`)'
    """
    return f"the fields {_fields(shape)}"


def _fields(shape: Any) -> str:
    hints = get_type_hints(shape)
    names = [name for name in hints if name in shape.__required_keys__]
    return ", ".join(f"`{name}`{_inside(hints[name])}" for name in names)


def _inside(hint: Any) -> str:
    if is_typeddict(hint):
        return f" (with {_fields(hint)})" if hint.__required_keys__ else ""
    if get_origin(hint) is list and is_typeddict(get_args(hint)[0]):
        return f" (each with {_fields(get_args(hint)[0])})"
    return ""
