"""Intervals over prompts: how sure a mean, and a difference between two models on the same prompts, is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

LEVEL = 0.95
FEWEST = 5
"""Prompts below which there is no interval: a bootstrap of fewer draws the same few tables over and over."""
ROUNDING = 1e-6
"""Values that differ by less than this share are equal: a model computes them in single precision, and the last digits
depend on what else is in a batch."""
DRAWS = 2000
"""Bootstrap draws: enough for the 2.5 % point of a distribution."""


@dataclass(frozen=True)
class Measured:
    """One measure of one model, prompt by prompt. The model's value is sum(values) / sum(weights)."""

    values: np.ndarray
    """[P]; NaN for a prompt on which it was not measured."""
    weights: np.ndarray
    """[P]; 1 for a mean over prompts, the number of tokens for a mean over tokens."""

    @classmethod
    def mean(cls, values: np.ndarray) -> "Measured":
        """A measure in which every prompt has one vote."""
        return cls(values, np.ones(len(values)))

    @property
    def known(self) -> np.ndarray:
        """[P] whether it was measured."""
        return np.isfinite(self.values)

    @property
    def value(self) -> float | None:
        """None if it was measured on no prompt."""
        known = self.known
        return float(self.values[known].sum() / self.weights[known].sum()) if known.any() else None


class Bootstrap:
    """Draws of prompts with replacement, the same for all measures and models, so that differences are paired.

    Intervals are percentiles of the bootstrap distribution, taken a little further out for few prompts as a t interval
    is wider than a normal one: Phi(-sqrt(n/(n-1)) t) in place of (1 - level)/2 (Hesterberg, "What Teachers Should Know
    About the Bootstrap", The American Statistician 69, 2015, on the expanded percentile interval).

    Args:
        prompts: P.
        seed: of the draws.
        level: nominal coverage.

    Example:

    >>> boot = Bootstrap(5)
    >>> one, other = (Measured.mean(np.array(row)) for row in ([1.0, 2.0, 3.0, 9.0, 4.0], [0.5, 1.5, 2.5, 8.5, 3.5]))
    >>> boot.difference(one, other)
    (0.5, [0.5, 0.5], 5)
    """

    def __init__(self, prompts: int, seed: int = 0, level: float = LEVEL) -> None:
        self.level = level
        random = np.random.default_rng(seed)
        # Row by row, so that memory holds one table of draws x prompts and no more.
        self._counts = np.empty((DRAWS, prompts))
        for row in self._counts:
            row[:] = np.bincount(random.integers(prompts, size=prompts), minlength=prompts)

    def interval(self, measured: Measured) -> list[float] | None:
        """The interval of a measure; None with fewer than 5 prompts."""
        return self._interval(self._means(measured, measured.known), int(measured.known.sum()))

    def difference(self, one: Measured, other: Measured) -> tuple[float | None, list[float] | None, int]:
        """one - other on the prompts on which both were measured: the difference, its interval, their number."""
        other = _rounded_off(one, other)
        both = one.known & other.known
        count = int(both.sum())
        if not count:
            return None, None, 0
        return self._gap(one, other), self._interval(self._spread(one, other), count), count

    def chance(self, one: Measured, other: Measured) -> float | None:
        """The two-sided p-value of one - other against 0; None with fewer than 5 prompts.

        A t test with the bootstrap's standard error, widened for few prompts as the interval is. A share of 2,000
        draws would have too few steps to be corrected for many comparisons.
        """
        other = _rounded_off(one, other)
        count = int((one.known & other.known).sum())
        if count < FEWEST:
            return None
        value, error = self._gap(one, other), np.nanstd(self._spread(one, other))
        if not error:
            return 0.0 if value else 1.0
        return float(2 * t.sf(abs(value) / error * np.sqrt((count - 1) / count), count - 1))

    def _gap(self, one: Measured, other: Measured) -> float:
        both = one.known & other.known
        means = [float(part.values[both].sum() / part.weights[both].sum()) for part in (one, other)]
        return round(means[0] - means[1], 12)

    def _spread(self, one: Measured, other: Measured) -> np.ndarray:
        """[draws] one - other."""
        both = one.known & other.known
        return np.round(self._means(one, both) - self._means(other, both), 12)

    def _means(self, measured: Measured, known: np.ndarray) -> np.ndarray:
        """[draws]; NaN for a draw without any of the known prompts."""
        above = self._counts @ np.where(known, measured.values, 0.0)
        below = self._counts @ np.where(known, measured.weights, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(above / below)

    def _interval(self, means: np.ndarray, prompts: int) -> list[float] | None:
        if prompts < FEWEST:
            return None
        tail = norm.cdf(-np.sqrt(prompts / (prompts - 1)) * t.ppf((1 + self.level) / 2, prompts - 1))
        return [float(end) for end in np.nanquantile(means, [tail, 1 - tail])]


def _rounded_off(one: Measured, other: Measured) -> Measured:
    """`other`, with the values of `one` where they are equal but for rounding."""
    equal = np.isclose(one.values, other.values, rtol=ROUNDING, atol=0) & (one.weights == other.weights)
    return Measured(np.where(equal, one.values, other.values), other.weights)


def holm(chances: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order (Holm, "A Simple Sequentially Rejective Multiple Test
    Procedure", 1979): the chance that any true null among them falls below a level is at most that level, however
    they depend on each other.

    Example:

    >>> holm([0.04, 0.01, 0.5])
    [0.08, 0.03, 0.5]
    """
    corrected, highest = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[place]))
        corrected[place] = highest
    return corrected
