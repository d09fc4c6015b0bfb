"""A test of whether a noisy series of losses falls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, theilslopes

SIGNIFICANT = 0.05
"""One-sided significance level of the tests."""


@dataclass(frozen=True)
class Trend:
    """A monotone trend in a series."""

    first: float
    """First value on the line through the series; `last` is the last one."""
    last: float
    falls: bool
    """Whether the series falls by more than its noise explains."""
    rises: bool
    p_falls: float
    """Probability of at least so many falling pairs if the order were random."""


def trend(values: Sequence[float]) -> Trend:
    """Test for a monotone trend (Mann-Kendall) and fit a line (Theil-Sen).

    Each pair of values votes on the direction, so neither one extreme batch nor the size of the noise decides (Mann
    1945, Econometrica 13; Sen 1968, JASA 63). The effect of an easy or hard batch on a loss is assumed to be
    independent from step to step.

    Args:
        values: at least 10 finite numbers, in the order of the steps.

    Example:

    >>> trend([2.0, 1.8, 1.9, 1.6, 1.7, 1.5, 1.4, 1.5, 1.2, 1.1]).falls
    True
    """
    steps = np.arange(len(values))
    slope, middle, *_ = theilslopes(values, steps)
    p_falls, p_rises = (
        kendalltau(steps, values, alternative=alternative).pvalue for alternative in ("less", "greater")
    )
    return Trend(
        first=float(middle),
        last=float(middle + slope * steps[-1]),
        falls=bool(p_falls < SIGNIFICANT),
        rises=bool(p_rises < SIGNIFICANT),
        p_falls=float(p_falls),
    )
