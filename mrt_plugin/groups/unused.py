"""Name and count columns that are not read. Refuse data if skipping a column changes what a group means."""

import re
from collections.abc import Collection
from typing import Any, get_type_hints

from mrt_plugin.groups.adapters import all_sources
from mrt_plugin.groups.adapters.guess import POOLS, guess_prompt, is_pool
from mrt_plugin.groups.messages import has_text
from mrt_plugin.groups.problems import GroupReport, Problems, Tally

PROMPT_PARTS = frozenset(
    "input inputs context contexts system system_prompt system_message history chat_history tools functions document "
    "documents docs passage passages article background image images audio audios video videos".split()
)
"""Common names of columns that hold a part of the prompt."""

PAIR = frozenset({"chosen", "rejected"})

CONVERSATION = "conversations"
"""A conversation beside what is read has another answer, or other turns."""


class Unused:
    """Find columns that are not `read`. Without `refuse`, the user named the columns, and the others are skipped.

    A `*` in a name of `read` stands for a number.
    """

    def __init__(self, read: Collection[str], problems: Problems, report: GroupReport, *, refuse: bool = True) -> None:
        self.read, self.problems, self.report, self.refuse = frozenset(read), problems, report, refuse
        patterns = (r"\d+".join(map(re.escape, name.split("*"))) for name in self.read if "*" in name)
        self.numbered = [re.compile(pattern) for pattern in patterns]
        self.refused: set[str] = set()

    def look(self, place: str, row: dict[str, Any]) -> None:
        """Count the columns of one row that are skipped, and add a problem for each that must not be skipped."""
        for name, value in row.items():
            if name in self.read or not _holds_something(value):
                continue
            if any(pattern.fullmatch(name) for pattern in self.numbered):
                continue
            self.report.unused.setdefault(name, Tally()).add(place)
            wanted = self.refuse and name not in self.refused and _changes_meaning(name.casefold(), value)
            used = [row[read] for read in self.read & row.keys()] if wanted else []
            messages = [item for part in used if isinstance(part, list) for item in part if isinstance(item, dict)]
            if wanted and value not in [*used, *(message.get("content") for message in messages)]:  # no copy
                self.refused.add(name)
                what = f"it would be left out, though it changes what is learned. {_how_to_read(row, name)}"
                self.problems.add(place, name, what)


def _how_to_read(row: dict[str, Any], column: str) -> str:
    """Return a sentence that names the source, or the `fields:` form, that reads a column of the row."""
    fitting = [source for source in all_sources() if source.fits(row) and column in get_type_hints(source.row)]
    if fitting:
        return f"Read it with source={' or '.join(repr(source.name) for source in fitting)}."
    prompt = guess_prompt(row)
    if column.casefold() in POOLS and prompt is not None:
        return f"Read the pool with source='fields:prompt={prompt},responses={column}'."
    advice = "No source reads it: write it into the prompt, or remove the column."
    if column.casefold() in POOLS | PAIR:
        advice = "No source reads it: make it the column `responses`, or remove it."
    for ours in ("responses", "completion"):
        if prompt is not None and ours in row:
            advice += f" To leave it out on purpose: source='fields:prompt={prompt},{ours}={ours}'."
    return advice


def _changes_meaning(name: str, value: Any) -> bool:
    """Return whether a column looks like a part of the prompt or like a pool. Numbers only describe a text."""
    if name in PROMPT_PARTS | PAIR:
        return isinstance(value, str | list | dict)
    return (name in POOLS or name == CONVERSATION) and is_pool(value)


def _holds_something(value: Any) -> bool:
    """Return whether a value is not None, blank text, or a list or object of these."""
    if isinstance(value, str):
        return has_text(value)
    if isinstance(value, list | dict):
        return any(map(_holds_something, value.values() if isinstance(value, dict) else value))
    return value is not None
