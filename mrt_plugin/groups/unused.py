"""Columns that nothing reads: named and counted, and refused where leaving them out changes what a group means."""

from collections.abc import Callable, Collection
from typing import Any

from mrt_plugin.groups.messages import has_text
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.report import GroupReport, Tally

PROMPT_PARTS = frozenset(
    "input inputs context contexts system system_prompt system_message history chat_history tools functions document "
    "documents docs passage passages article background image images audio audios video videos".split()
)
"""What columns are called that hold a part of the prompt."""

POOLS = frozenset(
    "responses generations completions candidates outputs rollouts predictions answers solutions".split()
)
"""What columns are called that hold several responses."""

PAIR = frozenset({"chosen", "rejected"})

Remedy = Callable[[dict[str, Any], str], str]
"""From a row and a column that must not be left out to a sentence that says how to read it."""


class Unused:
    """Looks at each row for what its reader leaves out.

    Args:
        read: the columns that are read.
        problems: gets one problem for each column that must not be left out.
        report: counts the rows in which each other column holds something.
        remedy: says how to read a column; None where the user named what to read.
    """

    def __init__(
        self, read: Collection[str], problems: Problems, report: GroupReport, remedy: Remedy | None = None
    ) -> None:
        self.read, self.problems, self.report, self.remedy = frozenset(read), problems, report, remedy
        self.refused: set[str] = set()

    def look(self, place: str, row: dict[str, Any]) -> None:
        """Count what is left out of one row."""
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
        """The values that are read, and the contents of their messages: a copy of one of them is not lost."""
        values = [row[name] for name in self.read & row.keys()]
        messages = [item for value in values if isinstance(value, list) for item in value if isinstance(item, dict)]
        return values + [message.get("content") for message in messages]


def changes_meaning(name: str, value: Any) -> bool:
    """Whether a column that holds something looks like a part of the prompt, or like the pool of responses.

    Numbers and truth values do not: they say something about a text.

    Example:

    >>> changes_meaning("input", "3, 5"), changes_meaning("source", "books"), changes_meaning("answers", ["a", "b"])
    (True, False, True)
    """
    name = name.casefold()
    if name in PROMPT_PARTS or name in PAIR:
        return isinstance(value, str | list | dict)
    return name in POOLS and isinstance(value, list) and sum(isinstance(item, str | list | dict) for item in value) > 1


def holds_something(value: Any) -> bool:
    """Whether a value is more than nothing: None, blank text, and lists and objects of such are nothing."""
    if isinstance(value, str):
        return has_text(value)
    if isinstance(value, list | dict):
        return any(map(holds_something, value.values() if isinstance(value, dict) else value))
    return value is not None
