"""The ledger: what came in, and what became of every single row and response, adding up exactly."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

EXAMPLES = 3
"""Places shown for each reason."""


@dataclass
class Entry:
    """What one rule did. `in - dropped + added = out`, for groups and for responses."""

    rule: str
    groups_in: int
    responses_in: int
    groups_dropped: int = 0
    """Groups dropped as a whole, or left without a response."""
    groups_added: int = 0
    """Copies of groups."""
    responses_dropped: int = 0
    """Responses dropped one at a time."""
    responses_dropped_with_group: int = 0
    responses_added: int = 0
    """Responses of the copies."""
    responses_changed: int = 0
    """They stay: a response that two rules change is counted by both."""
    flagged: int = 0
    """Responses and groups that stay, and are worth a look."""
    reasons: Counter[str] = field(default_factory=Counter)
    """How often each `action: reason` was given."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """For each reason, where: `group id` or `group id [response]`."""

    @property
    def groups_out(self) -> int:
        """Groups that go on to the next rule."""
        return self.groups_in - self.groups_dropped + self.groups_added

    @property
    def responses_out(self) -> int:
        """Responses that go on to the next rule."""
        return self.responses_in - self.responses_dropped - self.responses_dropped_with_group + self.responses_added

    def count(self, action: str, reason: str, place: str) -> None:
        """Note a reason, and where."""
        key = f"{action}: {reason}"
        self.reasons[key] += 1
        shown = self.examples.setdefault(key, [])
        if len(shown) < EXAMPLES:
            shown.append(place)

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        return {
            "rule": self.rule,
            **numbers,
            "groups_out": self.groups_out,
            "responses_out": self.responses_out,
            "reasons": dict(sorted(self.reasons.items())),
            "examples": dict(sorted(self.examples.items())),
        }


@dataclass
class Ledger:
    """The entries of one run in their order, and what is there at its end.

    Example:

    ```python
    curated = curate(groups, ["repetition", "refusals"])
    print(curated.ledger.lines())
    curated.ledger.check()  # done already: raises if a row were unaccounted for
    ```
    """

    entries: list[Entry] = field(default_factory=list)
    groups_out: int = 0
    responses_out: int = 0
    responses_unchanged: int = 0
    """Of those, the ones that are as they came in. Counted from the result, not from the entries."""
    responses_changed: int = 0

    def check(self) -> None:
        """Check that every row and response is accounted for.

        Raises:
            RuntimeError: if not, which is an error of this program.
        """
        problems = []
        for before, after in pairwise(self.entries):
            if (before.groups_out, before.responses_out) != (after.groups_in, after.responses_in):
                problems.append(f"{before.rule} let out what {after.rule} did not take in")
        if self.entries:
            last = self.entries[-1]
            if (last.groups_out, last.responses_out) != (self.groups_out, self.responses_out):
                problems.append(
                    f"{last.groups_out} groups and {last.responses_out} responses by the entries, {self.groups_out} "
                    f"and {self.responses_out} in the result"
                )
        if self.responses_unchanged + self.responses_changed != self.responses_out:
            problems.append("unchanged and changed responses are not all")
        if problems:
            raise RuntimeError(f"The ledger does not add up: {'; '.join(problems)}.")

    def as_dict(self) -> dict[str, Any]:
        """The ledger for JSON."""
        return {
            "groups_in": self.entries[0].groups_in if self.entries else self.groups_out,
            "responses_in": self.entries[0].responses_in if self.entries else self.responses_out,
            "groups_out": self.groups_out,
            "responses_out": self.responses_out,
            "responses_unchanged": self.responses_unchanged,
            "responses_changed": self.responses_changed,
            "dropped_by_rule": {
                f"{number} {entry.rule}": entry.responses_dropped + entry.responses_dropped_with_group
                for number, entry in enumerate(self.entries)
            },
            "entries": [entry.as_dict() for entry in self.entries],
        }

    def table(self) -> tuple[Sequence[str], list[tuple[str, ...]]]:
        """Column names and rows, for people: groups, then responses."""
        rows: list[tuple[str, ...]] = [
            (
                entry.rule,
                f"{entry.groups_in:,}",
                f"{entry.responses_in:,}",
                f"{entry.responses_dropped + entry.responses_dropped_with_group:,}",
                f"{entry.responses_added:,}",
                f"{entry.responses_changed:,}",
                f"{entry.flagged:,}",
                f"{entry.responses_out:,}",
            )
            for entry in self.entries
        ]
        return ("rule", "groups", "responses", "dropped", "added", "changed", "flagged", "left"), rows

    def lines(self) -> list[str]:
        """One line per rule, and a sum."""
        lines = []
        for entry in self.entries:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(entry.reasons.items()))
            lines.append(
                f"{entry.rule}: {entry.responses_in:,} responses of {entry.groups_in:,} groups in, "
                f"{entry.responses_out:,} of {entry.groups_out:,} out" + (f" ({reasons})" if reasons else "")
            )
        first = self.entries[0] if self.entries else None
        dropped = sum(entry.responses_dropped + entry.responses_dropped_with_group for entry in self.entries)
        added = sum(entry.responses_added for entry in self.entries)
        lines.append(
            f"{first.responses_in if first else self.responses_out:,} in"
            + (f" + {added:,} added" if added else "")
            + f" = {self.responses_unchanged:,} kept + {self.responses_changed:,} changed + {dropped:,} dropped."
        )
        return lines
