"""What is wrong with the data: every problem names its place, its column and the remedy."""

from dataclasses import dataclass
from typing import NoReturn

LIMIT = 20
"""Problems shown at once: enough to see a pattern, few enough to read."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the data.

    `place` is `line N` of a JSONL file (from 1, as an editor counts) or `row N` of anything else (from 0, as in
    `dataset[N]`); empty where the whole source is meant.
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
        problems: up to 20 of them, in the order in which they were found.
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
        # Exceptions are rebuilt from their message by default; this one has to cross process borders whole.
        return (DataError, (self.source, list(self.problems)))


class Problems:
    """Collects problems, and raises them together at the end, or at the 20th."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[Problem] = []

    def add(self, place: str, column: str | None, what: str) -> None:
        """Note a problem.

        Raises:
            DataError: with all problems so far, at the 20th.
        """
        self.found.append(Problem(place, column, what))
        if len(self.found) >= LIMIT:
            self.raise_any()

    def fail(self, what: str, cause: BaseException | None = None) -> NoReturn:
        """Raise a problem of the whole source, after any found before it.

        Raises:
            DataError: always.
        """
        self.found.append(Problem("", None, what))
        raise DataError(self.source, self.found) from cause

    def raise_any(self) -> None:
        """Raise what was found, if anything.

        Raises:
            DataError: with all problems so far.
        """
        if self.found:
            raise DataError(self.source, self.found)
