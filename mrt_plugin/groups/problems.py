"""Problems in the data. Each names its place, its column and the remedy."""

from dataclasses import dataclass
from typing import NoReturn

LIMIT = 20
"""The most problems shown at once: enough to see a pattern, few enough to read."""


@dataclass(frozen=True)
class Problem:
    """One problem in the data.

    `place` is `line N` in a JSONL file (from 1, as in an editor) or `row N` in anything else (from 0, as in
    `dataset[N]`). It is empty for a problem of the source as such.
    """

    place: str
    column: str | None
    what: str

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.place, f"column `{self.column}`" if self.column else "") if part)
        return f"{where}: {self.what}" if where else self.what


class DataError(ValueError):
    """The data cannot be trained on as it is.

    Attributes:
        source: the file, hub id or dataset that was read.
        problems: up to 20 problems, in the order found.
    """

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        if len(problems) == 1:
            text = f"{source}: {problems[0]}"
        else:
            text = "\n  ".join([f"{source}: {len(problems)} problems", *map(str, problems)])
        if len(problems) >= LIMIT:
            text += f"\n  Reading stopped after {LIMIT} problems; there may be more."
        super().__init__(text)

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, list[Problem]]]:
        # By default pickle rebuilds an exception from its message alone. Other processes need all of its fields.
        return (DataError, (self.source, list(self.problems)))


class Problems:
    """Collect problems, and raise them together at the end or at the 20th."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[Problem] = []

    def add(self, place: str, column: str | None, what: str) -> None:
        """Record a problem.

        Raises:
            DataError: with all problems so far, at the 20th.
        """
        self.found.append(Problem(place, column, what))
        if len(self.found) >= LIMIT:
            self.raise_any()

    def fail(self, what: str, cause: BaseException | None = None) -> NoReturn:
        """Raise a problem of the source as such, listed after any earlier problems.

        Raises:
            DataError: always.
        """
        self.found.append(Problem("", None, what))
        raise DataError(self.source, self.found) from cause

    def raise_any(self) -> None:
        """Raise the problems found, if any.

        Raises:
            DataError: with all problems so far.
        """
        if self.found:
            raise DataError(self.source, self.found)
