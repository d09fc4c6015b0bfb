"""Convert rows of a source's format to rows that are read without a source."""

from collections.abc import Iterable, Iterator
from typing import Any, get_type_hints

from mrt_plugin.groups.adapters import parse_source
from mrt_plugin.groups.adapters.adapter import Adapter, LeftOut, Mismatch, field_names
from mrt_plugin.groups.adapters.fields import find_field
from mrt_plugin.groups.adapters.guess import guess_source
from mrt_plugin.groups.messages import kind
from mrt_plugin.groups.problems import DataError, GroupReport, Problems, Tally
from mrt_plugin.groups.regroup import Collector
from mrt_plugin.groups.sources import Row
from mrt_plugin.groups.unused import Unused


def converted_rows(rows: Iterable[Row], source: str, problems: Problems, report: GroupReport) -> Iterator[Row]:
    """Convert rows of the source's format. If the first row has another format, the error is raised at once."""
    adapter, options = parse_source(source)
    category = options.pop("category", "")
    unused = None  # the fields that a user's function reads are unknown, unless it declares them
    if adapter.row is not None:
        unused = Unused({*get_type_hints(adapter.row), category, category.split(".")[0]}, problems, report)
    elif adapter.name == "fields":
        names = {part for name in (category, *map(str, options.values())) for part in (name, name.split(".")[0])}
        unused = Unused(names, problems, report, refuse=False)
    with Collector() as collected:
        for number, (place, row) in enumerate(rows):
            try:
                checked = adapter.check_row(row)
            except Mismatch as mismatch:
                if not number:
                    problems.fail(_another_format(adapter, place, row, mismatch))
                problems.add(place, mismatch.name, mismatch.what)
                continue
            if unused is not None:
                unused.look(place, row)
            try:
                label = {"category": find_field(row, category)} if category else {}
                if adapter.together:
                    collected.add(str(checked[adapter.together]).encode(), (place, label, checked))
                    continue
                for where, item in _convert(adapter, place, checked, options, problems, report):
                    yield where, item | label
            except Mismatch as mismatch:
                if not number:
                    problems.fail(_another_format(adapter, place, row, mismatch))
                problems.add(place, mismatch.name, mismatch.what)
        for items in collected:
            place, label, first = items[0]
            place = f"{place} ({adapter.together} {first[adapter.together]})"
            try:
                for where, item in _convert(adapter, place, [row for *_, row in items], options, problems, report):
                    yield where, item | label
            except Mismatch as mismatch:
                problems.add(place, mismatch.name, mismatch.what)


def _convert(
    adapter: Adapter, place: str, rows: Any, options: dict[str, Any], problems: Problems, report: GroupReport
) -> Iterator[Row]:
    """Convert one checked row, or the rows that belong together."""
    try:
        for item in adapter.convert(rows, **options):
            if isinstance(item, LeftOut):
                report.left_out.setdefault(item.what, Tally()).add(place)
            elif isinstance(item, dict):
                yield place, item
            else:
                wanted = "it must yield dicts with `prompt` and `responses` (or `completion`)"
                problems.fail(f"source {adapter.name!r} gives {kind(item)} for {place}: {wanted}.")
    except (Mismatch, DataError):
        raise
    except Exception as error:
        error.add_note(f"The source {adapter.name!r} was reading {place}.")
        raise


def _another_format(adapter: Adapter, place: str, row: dict[str, Any], mismatch: Mismatch) -> str:
    """Return the problem with data whose first row does not match the source."""
    found = ", ".join(f"`{name}`" for name in row) or "none"
    expected = f"expects the fields {field_names(adapter.row)}" if adapter.row else "reads other fields"
    why = f"`{mismatch.name}`: {mismatch.what}{guess_source(row)}"
    if adapter.row and adapter.row.__required_keys__ <= row.keys():
        return f"source {adapter.name!r}, {place}: {why}"
    if {"prompt", "responses"} <= row.keys():
        return f"{place} has {found}, which need no source: leave out source={adapter.name!r}."
    return f"source {adapter.name!r} {expected}; {place} has {found}. {why}"
