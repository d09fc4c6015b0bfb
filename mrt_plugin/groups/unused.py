"""Name and count columns that are not read. Refuse data if skipping a column changes what a group means."""

from collections.abc import Callable, Collection
from typing import Any

from mrt_plugin.groups.messages import has_text
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.report import GroupReport, Tally

PROMPT_PARTS = frozenset(
    "input inputs context contexts system system_prompt system_message history chat_history tools functions document "
    "documents docs passage passages article background image images audio audios video videos".split()
)
"""Common names of columns that hold a part of the prompt."""

POOLS = frozenset(
    "responses generations completions candidates outputs rollouts predictions answers solutions".split()
)
"""Common names of columns that hold several responses."""

PAIR = frozenset({"chosen", "rejected"})

Remedy = Callable[[dict[str, Any], str], str]
"""Takes a row and a column that must not be skipped, and returns a sentence on how to read it."""


class Unused:
    """Find columns that the reader of the rows skips.

    Args:
        read: the columns that are read.
        problems: gets one problem for each column that must not be skipped.
        report: counts the rows in which each other column is not empty.
        remedy: returns a sentence on how to read a column. None where the user named the columns to read.
    """

    def __init__(
        self, read: Collection[str], problems: Problems, report: GroupReport, remedy: Remedy | None = None
    ) -> None:
        self.read, self.problems, self.report, self.remedy = frozenset(read), problems, report, remedy
        self.refused: set[str] = set()

    def look(self, place: str, row: dict[str, Any]) -> None:
        """Count the columns of one row that are skipped."""
        for name, value in row.items():
            if name in self.read or not holds_something(value):
                continue
            self.report.unused.setdefault(name, Tally()).add(place)
            if self.remedy is None or name in self.refused or not changes_meaning(name, value):
                continue
            if value not in self._said(row):
                self.refused.add(name)
                what = f"it would be left out, though it changes what is learned. {self.remedy(row, name)}"
                self.problems.add(place, name, what)

    def _said(self, row: dict[str, Any]) -> list[Any]:
        """Return the values that are read, and the contents of their messages. A skipped copy of one loses nothing."""
        values = [row[name] for name in self.read & row.keys()]
        messages = [item for value in values if isinstance(value, list) for item in value if isinstance(item, dict)]
        return values + [message.get("content") for message in messages]


def changes_meaning(name: str, value: Any) -> bool:
    """Return whether a non-empty column looks like a part of the prompt or like the pool of responses.

    Numbers and booleans do not: they describe a text.

    Example:

    >>> changes_meaning("input", "3, 5"), changes_meaning("source", "books"), changes_meaning("answers", ["a", "b"])
    (True, False, True)
    """
    name = name.casefold()
    if name in PROMPT_PARTS or name in PAIR:
        return isinstance(value, str | list | dict)
    return name in POOLS and isinstance(value, list) and sum(isinstance(item, str | list | dict) for item in value) > 1


def holds_something(value: Any) -> bool:
    """Return whether a value is not empty. None, blank text, and lists and objects of these are empty."""
    if isinstance(value, str):
        return has_text(value)
    if isinstance(value, list | dict):
        return any(map(holds_something, value.values() if isinstance(value, dict) else value))
    return value is not None
