"""Read CSV and TSV files. Their cells have no types, so a cell is text until a score or weight is read from it."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrt_plugin.groups.problems import Problems

LISTS = frozenset("responses scores weights finish_reasons messages conversations".split())
"""Columns whose cells hold a list, written as JSON."""

TRUTH = {"true": 1.0, "false": 0.0}


class Cell(str):
    """The text of a cell. Only where a number is expected is it read as one, so the answer `4` stays text."""

    __slots__ = ()

    def number(self) -> float | None:
        """Return the number, with 1 and 0 for true and false, or None if the cell holds none."""
        text = self.strip().casefold()
        try:
            return TRUTH[text] if text in TRUTH else float(text)
        except ValueError:
            return None


def delimited_rows(path: Path, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows below the header. A row is named by the line of the file that it starts in.

    Cells follow RFC 4180: text with the separator, a quote or a line break is quoted. An empty cell counts as absent.
    """
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(2**31 - 1)  # for all readers of the process; its default would refuse a response of 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        header: list[str] = []
        place = "line 1"
        try:
            header = next(reader, [])
            _check_header(header, separator, problems)
            place = f"line {reader.line_num + 1}"
            for cells in reader:
                if cells:
                    row = _row(place, header, cells, problems)
                    if row is not None:
                        yield place, row
                place = f"line {reader.line_num + 1}"
        except csv.Error as problem:
            problems.fail(f"{place} cannot be read ({problem}): quote the text, and double each quote in it.", problem)
        except UnicodeDecodeError as problem:
            problems.fail(f"not UTF-8 text after {place}: convert the file.", problem)


def _check_header(header: list[str], separator: str, problems: Problems) -> None:
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if "" in header or twice:
        what = f"the column {twice[0]!r} twice" if twice and twice[0] else "a column without a name"
        problems.fail(f"its header has {what}: the first line names each column once.")
    if len(header) == 1 and any(mark in header[0] for mark in ",;\t"):
        kind = "tabs in a .tsv file" if separator == "\t" else "commas in a .csv file"
        problems.fail(f"its header {header[0]!r} is one column: separate columns by {kind}.")


def _row(place: str, header: list[str], cells: list[str], problems: Problems) -> dict[str, Any] | None:
    if len(cells) != len(header):
        what = f"it has {len(cells)} cells for {len(header)} columns: quote text that has the separator in it."
        problems.add(place, None, what)
        return None
    row: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=True):
        row[name] = Cell(cell) if cell else None
        if name in LISTS and cell:
            try:
                row[name] = json.loads(cell)
            except ValueError:
                row[name] = None
            if not isinstance(row[name], list):
                advice = "or use a column for each, and source='fields:prompt=prompt,responses=response_*'"
                problems.add(place, name, f'a cell of it must be a list in JSON, like ["a", "b"], {advice}.')
                return None
    return row
