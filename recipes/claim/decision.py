"""The decision rule, fixed before the main runs: paired bootstrap intervals over seeds, and their verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

SMALLEST = 0.05
"""Smallest effect of interest: a KL (distance to the truth) that is 5 % lower."""
LEVEL = 0.95
DRAWS = 10_000

Verdict = Literal["supported", "too small to matter", "harmful", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[..., np.ndarray], *samples: Sequence[float] | np.ndarray, seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """Compute a percentile bootstrap interval over seeds.

    All samples are resampled together, because seed i is the same in all of them.

    Args:
        statistic: elementwise function of the samples' means, called with one array of means per sample.
        samples: for each sample one value per seed, in the order of the seeds.

    Example:

    >>> bootstrap(lambda a, b: a - b, [1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
    Estimate(value=0.5, low=0.5, high=0.5)
    """
    table = np.stack([np.asarray(sample, dtype=np.float64) for sample in samples])
    random = np.random.default_rng(seed)
    chosen = random.integers(table.shape[1], size=(draws, table.shape[1]))
    found = statistic(*table[:, chosen].mean(axis=2))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(statistic(*table.mean(axis=1))), float(low), float(high))


def relative_gain(one: np.ndarray, several: np.ndarray) -> np.ndarray:
    """Return the reduction of the KL with several responses, as a share of the KL with K = 1."""
    return 1 - several / one


def affordable_share(one_at_cost: np.ndarray, one_at_prompts: np.ndarray, several: np.ndarray) -> np.ndarray:
    """Return the share of the gain at equal prompts that is left at equal cost."""
    return (one_at_cost - several) / (one_at_prompts - several)


def decide(gain: Estimate, smallest: float = SMALLEST) -> Verdict:
    """Return the verdict for a relative gain and its interval.

    Example:

    >>> decide(Estimate(0.10, 0.02, 0.18)), decide(Estimate(0.02, -0.01, 0.04)), decide(Estimate(0.04, 0.01, 0.07))
    ('supported', 'too small to matter', 'undecided')
    """
    if gain.high < 0:
        return "harmful"
    if gain.high < smallest:
        return "too small to matter"
    if gain.low > 0 and gain.value >= smallest:
        return "supported"
    return "undecided"
