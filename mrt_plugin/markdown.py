"""Write tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: bool = True) -> list[str]:
    """Return the lines of a table. With `numbers`, all columns but the first are aligned to the right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(columns) - 1)]
    return [_line(columns), f"|{'|'.join(rule)}|", *map(_line, rows)]


def _line(cells: Iterable[Any]) -> str:
    return "|" + "|".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + "|"
