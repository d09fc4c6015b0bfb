"""The decision rule, fixed before the main runs: paired bootstrap intervals over seeds, and what they let us say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

SMALLEST = 0.05
"""The smallest effect of interest: a KL that is 5 % lower."""
LEVEL = 0.95
DRAWS = 10_000

Verdict = Literal["supported", "too small to matter", "harmful", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[..., np.ndarray], *samples: Sequence[float] | np.ndarray, seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """A percentile bootstrap interval over seeds; all samples are resampled together, since seed i is the same in all.

    Args:
        statistic: of the samples' means: called with one array of means per sample, it works elementwise.
        samples: one value per seed each, in the order of the seeds.

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
    """By how much of the KL of K = 1 the KL of several responses is lower."""
    return 1 - several / one


def affordable_share(one_at_cost: np.ndarray, one_at_prompts: np.ndarray, several: np.ndarray) -> np.ndarray:
    """How much of the gain at equal prompts is left at equal cost."""
    return (one_at_cost - several) / (one_at_prompts - several)


def decide(gain: Estimate, smallest: float = SMALLEST) -> Verdict:
    """What a relative gain and its interval let us say.

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
