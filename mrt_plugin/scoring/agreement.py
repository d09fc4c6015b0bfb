"""The agreement of two scorers on the order of a prompt's responses."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class RankAgreement:
    """Spearman's rank correlation inside each group, averaged over the `groups` that both scorers rank.

    `same_best` is the share of these groups in which both scorers have a best response in common.
    """

    correlation: float
    groups: int
    same_best: float

    def summary(self, first: str, other: str) -> str:
        """Return one line for the log."""
        if not self.groups:
            return f"{other} and {first}: no group has responses that both score apart."
        return (
            f"{other} agrees with {first}: rank correlation {self.correlation:.2f} inside a group (mean of "
            f"{self.groups:,}), the same best response in {self.same_best:.0%}."
        )


def rank_agreement(first: Iterable[Sequence[float]], other: Iterable[Sequence[float]]) -> RankAgreement:
    """Compare two lists of scores per group."""
    correlations: list[float] = []
    same = 0
    for a, b in zip(first, other, strict=True):
        x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            continue
        correlations.append(float(np.corrcoef(rankdata(x), rankdata(y))[0, 1]))
        same += bool(((x == x.max()) & (y == y.max())).any())
    count = len(correlations)
    mean = round(math.fsum(correlations) / count, 12) + 0.0 if count else math.nan
    return RankAgreement(mean, count, same / count if count else math.nan)
