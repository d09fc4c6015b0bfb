"""Compute bootstrap confidence intervals over prompts, for means and for differences between two models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

LEVEL = 0.95
FEWEST = 5
"""Smallest number of prompts with an interval. With fewer, the bootstrap draws are mostly the same few samples."""
ROUNDING = 1e-6
"""Values with a smaller relative difference count as equal, because the rest of a batch changes the last digits."""
DRAWS = 2000


@dataclass(frozen=True)
class Measured:
    """One measure of one model for each of P prompts, NaN if not measured: sum(values) / sum(weights), each [P]."""

    values: np.ndarray
    weights: np.ndarray

    @classmethod
    def mean(cls, values: np.ndarray) -> "Measured":
        return cls(values, np.ones(len(values)))

    @property
    def known(self) -> np.ndarray:
        return np.isfinite(self.values)

    @property
    def value(self) -> float | None:
        """Return the model's value; None if no prompt was measured."""
        return self.over(self.known) if self.known.any() else None

    def over(self, known: np.ndarray) -> float:
        return float(self.values[known].sum() / self.weights[known].sum())


class Bootstrap:
    """Paired bootstrap: prompts are drawn with replacement, with the same draws for all measures and models.

    Intervals are expanded percentile intervals, wider for few prompts as a t interval is. With n prompts, their tail
    probability is Phi(-sqrt(n/(n-1)) t), with t the quantile at (1 + level)/2 for n-1 degrees of freedom (Hesterberg,
    "What Teachers Should Know About the Bootstrap", The American Statistician 69, 2015).

    >>> boot = Bootstrap(5)
    >>> one, other = (Measured.mean(np.array(row)) for row in ([1.0, 2.0, 3.0, 9.0, 4.0], [0.5, 1.5, 2.5, 8.5, 3.5]))
    >>> boot.difference(one, other)
    (0.5, [0.5, 0.5], 5)
    """

    def __init__(self, prompts: int, seed: int = 0, level: float = LEVEL) -> None:
        self.level = level
        random = np.random.default_rng(seed)
        # Filled row by row, so that memory holds only one table of draws x prompts.
        self._counts = np.empty((DRAWS, prompts))
        for row in self._counts:
            row[:] = np.bincount(random.integers(prompts, size=prompts), minlength=prompts)

    @property
    def counts(self) -> np.ndarray:
        """How often each prompt is in each draw, [draws, prompts]."""
        return self._counts

    def interval(self, measured: Measured) -> list[float] | None:
        """Return the interval of a measure; None with fewer than 5 prompts."""
        return self.ends(self._means(measured, measured.known), int(measured.known.sum()))

    def difference(self, one: Measured, other: Measured) -> tuple[float | None, list[float] | None, int]:
        """Return one - other, its interval and the number of prompts, over the prompts on which both were measured."""
        gap, spread, count = self._gap(one, other)
        return (gap, self.ends(spread, count), count) if count else (None, None, 0)

    def chance(self, one: Measured, other: Measured) -> float | None:
        """Return the two-sided p-value of one - other against 0; None with fewer than 5 prompts.

        It is a t test with the bootstrap's error: one counted from 2,000 draws is too coarse for many comparisons.
        """
        gap, spread, count = self._gap(one, other)
        if count < FEWEST:
            return None
        error = np.nanstd(spread)
        if not error:
            return 0.0 if gap else 1.0
        return float(2 * t.sf(abs(gap) / error * np.sqrt((count - 1) / count), count - 1))

    def _gap(self, one: Measured, other: Measured) -> tuple[float, np.ndarray, int]:
        """Return one - other, the same in each draw [draws], and the number of prompts with both."""
        equal = np.isclose(one.values, other.values, rtol=ROUNDING, atol=0) & (one.weights == other.weights)
        other = Measured(np.where(equal, one.values, other.values), other.weights)
        both = one.known & other.known
        if not both.any():
            return 0.0, np.zeros(0), 0
        spread = np.round(self._means(one, both) - self._means(other, both), 12)
        return round(one.over(both) - other.over(both), 12), spread, int(both.sum())

    def _means(self, measured: Measured, known: np.ndarray) -> np.ndarray:
        """Return the mean in each draw, [draws]; NaN for a draw without any of the known prompts."""
        above = self._counts @ np.where(known, measured.values, 0.0)
        below = self._counts @ np.where(known, measured.weights, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(above / below)

    def ends(self, means: np.ndarray, prompts: int) -> list[float] | None:
        """Return the interval of an estimate from its value in each draw, [draws]; None with fewer than 5 prompts."""
        if prompts < FEWEST:
            return None
        tail = norm.cdf(-np.sqrt(prompts / (prompts - 1)) * t.ppf((1 + self.level) / 2, prompts - 1))
        return [float(end) for end in np.nanquantile(means, [tail, 1 - tail])]


def holm(chances: Sequence[float]) -> list[float]:
    """Correct p-values for the number of comparisons by Holm's method (1979), and return them in the given order.

    >>> holm([0.04, 0.01, 0.5])
    [0.08, 0.03, 0.5]
    """
    corrected, highest = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[place]))
        corrected[place] = highest
    return corrected
