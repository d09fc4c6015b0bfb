"""What reading a dataset finds: problems that stop it, and counts of everything that it drops or changes."""

from dataclasses import dataclass, field
from typing import NoReturn

LIMIT = 20
"""The most problems shown at once: enough to see a pattern, few enough to read."""


@dataclass(frozen=True)
class Problem:
    """One problem. `place` is `line N` (from 1), `row N` (from 0), or empty for the source as such."""

    place: str
    column: str | None
    what: str

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.place, f"column `{self.column}`" if self.column else "") if part)
        return f"{where}: {self.what}" if where else self.what


class DataError(ValueError):
    """The data cannot be trained on as it is: up to 20 `problems` of the `source`, in the order found."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        text = f"{source}: {problems[0]}"
        if len(problems) > 1:
            text = "\n  ".join([f"{source}: {len(problems)} problems", *map(str, problems)])
        if len(problems) >= LIMIT:
            text += f"\n  Reading stopped after {LIMIT} problems; there may be more."
        super().__init__(text)

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, list[Problem]]]:
        # By default pickle rebuilds an exception from its message alone.
        return (DataError, (self.source, list(self.problems)))


class Problems:
    """Collect problems, and raise them together at the end or at the 20th."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[Problem] = []

    def add(self, place: str, column: str | None, what: str) -> None:
        """Record a problem. Raise DataError with all problems at the 20th."""
        self.found.append(Problem(place, column, what))
        if len(self.found) >= LIMIT:
            self.raise_any()

    def fail(self, what: str, cause: BaseException | None = None) -> NoReturn:
        """Raise DataError with any earlier problems and one of the source as such."""
        self.found.append(Problem("", None, what))
        raise DataError(self.source, self.found) from cause

    def raise_any(self) -> None:
        """Raise DataError with all problems so far, if any."""
        if self.found:
            raise DataError(self.source, self.found)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


@dataclass
class Tally:
    """How often something happened, and where it happened first."""

    count: int = 0
    first: str = ""

    def add(self, place: str) -> None:
        self.count += 1
        self.first = self.first or place


@dataclass
class GroupReport:
    """The counts of one call of `read_groups`. `responses` are those kept, and `smallest` and `largest` pool sizes."""

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
    """What a source skipped on purpose, by reason."""

    def summary(self) -> str:
        counts = f"{plural(self.groups, 'group')}, {plural(self.responses, 'response')}"
        sizes = str(self.smallest) if self.smallest == self.largest else f"{self.smallest} to {self.largest}"
        regrouped = f", regrouped by prompt from {plural(self.rows, 'row')}" if self.regrouped else ""
        return f"{self.source}: {counts} ({sizes} each){regrouped}."

    def notes(self) -> list[str]:
        """Return one line for each decision that a user should know about."""
        counted = (
            ("empty responses dropped", self.empty_responses, ""),
            ("groups dropped for having no response", self.groups_without_responses, ""),
            ("repeated responses kept", self.duplicate_responses, "; a repeated answer counts as a likelier answer"),
            ("repeated prompts kept as groups of their own", self.duplicate_prompts, "; held-out splits go by prompt"),
        )
        lines = [
            f"{self.source}: {what}: {tally.count:,} (first: {tally.first}){why}."
            for what, tally, why in counted
            if tally.count
        ]
        for what, tally in self.left_out.items():
            lines.append(f"{self.source}: left out: {tally.count:,} {what} (first: {tally.first}).")
        if self.regrouped and self.largest == 1 and self.groups > 1:
            alike = "a group is made of rows whose prompts are equal, character by character"
            lines.append(f"{self.source}: every prompt has one response; {alike}.")
        found = ", ".join(f"{name} ({plural(tally.count, 'row')})" for name, tally in self.unused.items())
        return [*lines, f"{self.source}: these columns are not used: {found}."] if found else lines
