"""The report of a selection."""

import logging
from dataclasses import dataclass, field

from mrt_plugin.groups.problems import plural

logger = logging.getLogger(__name__)


@dataclass
class SelectionReport:
    """The counts of one selection."""

    selector: str
    k: int | None
    similarity: str
    groups: int = 0
    candidates: int = 0
    kept: int = 0
    whole: int = 0
    """Groups with N <= K, which keep all responses."""
    short: int = 0
    """Groups with N < K."""
    weightless: int = 0
    """Responses of weight 0, which are not candidates."""
    left_out: int = 0
    """Responses left out by the limit on candidates."""
    later_picks: int = 0
    """Picks after a group's first, for selectors whose picks have gains."""
    zero_gain: int = 0
    """Later picks with a gain of 0."""
    remarks: list[str] = field(default_factory=list)
    """Lines for the log about the allocation and the agreement of scorers."""

    @property
    def zero_gain_share(self) -> float:
        """The share of picks after the first that covered nothing new."""
        return self.zero_gain / self.later_picks if self.later_picks else 0.0

    @property
    def _k(self) -> str:
        return f"k={self.k}" if self.k is not None else "their own k"

    def summary(self) -> str:
        """Return one line with the kept responses."""
        line = f"{self.selector}: kept {self.kept:,} of {plural(self.candidates, 'response')} of "
        line += plural(self.groups, "group")
        if self.whole:
            line += f"; {plural(self.whole, 'pool')} of at most {self._k} kept whole"
        if self.later_picks:
            picks = plural(self.later_picks, "pick")
            line += f"; {self.zero_gain_share:.1%} of {picks} after a group's first gained nothing"
        return line + "."

    def notes(self) -> list[str]:
        """Return one line for each warning."""
        lines = []
        if self.short:
            lines.append(f"{self.selector}: pools smaller than {self._k}, kept whole: {self.short:,}.")
        if self.weightless:
            lines.append(f"{self.selector}: responses of weight 0, never kept: {self.weightless:,}.")
        if self.left_out:
            lines.append(f"{self.selector}: responses beyond n candidates, left out at random: {self.left_out:,}.")
        if self.zero_gain_share > 0.5:
            hint = " similarity='rescaled' leaves later picks more to gain." if self.similarity == "paper" else ""
            lines.append(
                f"{self.selector}: {self.zero_gain_share:.0%} of the picks after a group's first gained nothing: the "
                f"first ones cover the pool, and the rest went by score, then by chance.{hint}"
            )
        return lines

    def log(self) -> None:
        """Log the summary, and a warning for each note."""
        for line in self.remarks:
            logger.info(line)
        logger.info(self.summary())
        for line in self.notes():
            logger.warning(line)
