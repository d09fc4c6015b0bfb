"""The ledger of a curation run: counts of every group and response, which must add up."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass
class Entry:
    """The counts of one rule. `in - dropped + added = out`, for groups and for responses."""

    rule: str
    groups_in: int
    responses_in: int
    groups_dropped: int = 0
    """Groups that the rule dropped, or left without a response."""
    groups_added: int = 0
    responses_dropped: int = 0
    responses_dropped_with_group: int = 0
    responses_added: int = 0
    responses_changed: int = 0
    flagged: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """The number of decisions for each `action: reason`."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first places of each reason: `group id` or `group id [response]`."""
    notes: list[str] = field(default_factory=list)
    """What the rule says about its decisions as a whole."""

    @property
    def responses_gone(self) -> int:
        return self.responses_dropped + self.responses_dropped_with_group

    @property
    def groups_out(self) -> int:
        return self.groups_in - self.groups_dropped + self.groups_added

    @property
    def responses_out(self) -> int:
        return self.responses_in - self.responses_gone + self.responses_added

    def count(self, action: str, reason: str, place: str, times: int = 1) -> None:
        key = f"{action}: {reason}"
        self.reasons[key] += times
        self.examples[key] = [*self.examples.get(key, []), place][:3]

    def as_dict(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            **{name: value for name, value in vars(self).items() if isinstance(value, int)},
            "groups_out": self.groups_out,
            "responses_out": self.responses_out,
            "reasons": dict(sorted(self.reasons.items())),
            "examples": dict(sorted(self.examples.items())),
            **({"notes": self.notes} if self.notes else {}),
        }


@dataclass
class Ledger:
    """The entries of one run in their order, and the counts of its result."""

    entries: list[Entry] = field(default_factory=list)
    groups_out: int = 0
    responses_out: int = 0
    responses_unchanged: int = 0
    """Counted from the result, not from the entries."""
    responses_changed: int = 0

    @property
    def first(self) -> Entry:
        """The first entry. Without entries, one that passes on what the result holds."""
        return self.entries[0] if self.entries else Entry("", self.groups_out, self.responses_out)

    def check(self) -> None:
        """Raise RuntimeError, an error of this program, unless every group and response is accounted for."""
        problems = [
            f"{before.rule} let out what {after.rule} did not take in"
            for before, after in pairwise(self.entries)
            if (before.groups_out, before.responses_out) != (after.groups_in, after.responses_in)
        ]
        last = self.entries[-1] if self.entries else self.first
        if (last.groups_out, last.responses_out) != (self.groups_out, self.responses_out):
            by_entries = f"{last.groups_out} groups and {last.responses_out} responses by the entries"
            problems.append(f"{by_entries}, {self.groups_out} and {self.responses_out} in the result")
        if self.responses_unchanged + self.responses_changed != self.responses_out:
            problems.append("unchanged and changed responses are not all")
        if problems:
            raise RuntimeError(f"The ledger does not add up: {'; '.join(problems)}.")

    def as_dict(self) -> dict[str, Any]:
        dropped = {f"{number} {entry.rule}": entry.responses_gone for number, entry in enumerate(self.entries)}
        return {
            "groups_in": self.first.groups_in,
            "responses_in": self.first.responses_in,
            **{name: value for name, value in vars(self).items() if name != "entries"},
            "dropped_by_rule": dropped,
            "entries": [entry.as_dict() for entry in self.entries],
        }

    def table(self) -> tuple[list[str], list[tuple[str, ...]]]:
        """Return column names and rows for display: the groups, then the responses of each rule."""
        rows = []
        for one in self.entries:
            counts = (one.groups_in, one.responses_in, one.responses_gone, one.responses_added, one.responses_changed)
            rows.append((one.rule, *(f"{count:,}" for count in (*counts, one.flagged, one.responses_out))))
        return ["rule", "groups", "responses", "dropped", "added", "changed", "flagged", "left"], rows

    def lines(self) -> list[str]:
        """Return one line per rule, and one with the sum."""
        lines = []
        for entry in self.entries:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(entry.reasons.items()))
            lines.append(
                f"{entry.rule}: {entry.responses_in:,} responses of {entry.groups_in:,} groups in, "
                f"{entry.responses_out:,} of {entry.groups_out:,} out" + (f" ({reasons})" if reasons else "")
            )
            lines += [f"{entry.rule}: {note}" for note in entry.notes]
        dropped = sum(entry.responses_gone for entry in self.entries)
        added = sum(entry.responses_added for entry in self.entries)
        total = f"{self.first.responses_in:,} in" + (f" + {added:,} added" if added else "")
        left = f"{self.responses_unchanged:,} kept + {self.responses_changed:,} changed"
        return [*lines, f"{total} = {left} + {dropped:,} dropped."]
