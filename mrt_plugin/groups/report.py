"""Counts of what reading a dataset changed. Everything that is dropped, or kept unexpectedly, is counted."""

import logging
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 group`, `2,000 groups`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


@dataclass
class Tally:
    """How often something happened, and where it happened first."""

    count: int = 0
    first: str = ""

    def add(self, place: str) -> None:
        """Count one occurrence at `place`."""
        self.count += 1
        self.first = self.first or place


@dataclass
class GroupReport:
    """The counts of one call of `read_groups`.

    `responses` counts the responses kept. `smallest` and `largest` are the extreme pool sizes N (responses per group).
    """

    source: str
    rows: int = 0
    groups: int = 0
    responses: int = 0
    smallest: int = 0
    largest: int = 0
    regrouped: bool = False
    empty_responses: Tally = field(default_factory=Tally)
    groups_without_responses: Tally = field(default_factory=Tally)
    duplicate_responses: Tally = field(default_factory=Tally)
    duplicate_prompts: Tally = field(default_factory=Tally)
    unused: dict[str, Tally] = field(default_factory=dict)
    """The columns that are not read, with the rows in which they are not empty."""
    left_out: dict[str, Tally] = field(default_factory=dict)
    """What an adapter skipped on purpose, by reason."""

    def count_group(self, responses: int) -> None:
        """Count a group that is kept, with its number of responses."""
        self.groups += 1
        self.responses += responses
        self.smallest = min(self.smallest, responses) if self.smallest else responses
        self.largest = max(self.largest, responses)

    def summary(self) -> str:
        """Return a line with the number of groups and responses."""
        counts = f"{plural(self.groups, 'group')}, {plural(self.responses, 'response')}"
        sizes = str(self.smallest) if self.smallest == self.largest else f"{self.smallest} to {self.largest}"
        regrouped = f", regrouped by prompt from {plural(self.rows, 'row')}" if self.regrouped else ""
        return f"{self.source}: {counts} ({sizes} each){regrouped}."

    def notes(self) -> list[str]:
        """Return one line for each decision that a user should know about."""
        lines = []
        for what, tally, why in (
            ("empty responses dropped", self.empty_responses, ""),
            ("groups dropped for having no response", self.groups_without_responses, ""),
            ("repeated responses kept", self.duplicate_responses, "a repeated answer counts as a likelier answer"),
            ("repeated prompts kept as groups of their own", self.duplicate_prompts, "held-out splits go by prompt"),
        ):
            if tally.count:
                reason = f"; {why}" if why else ""
                lines.append(f"{self.source}: {what}: {tally.count:,} (first: {tally.first}){reason}.")
        for what, tally in self.left_out.items():
            lines.append(f"{self.source}: left out: {tally.count:,} {what} (first: {tally.first}).")
        if self.unused:
            found = ", ".join(f"{name} ({plural(tally.count, 'row')})" for name, tally in self.unused.items())
            lines.append(f"{self.source}: these columns are not used: {found}.")
        return lines

    def log(self) -> None:
        """Log the summary, and a warning for each decision."""
        logger.info(self.summary())
        for line in self.notes():
            logger.warning(line)
