"""Estimate what ten seeds can show, from runs pooled over prompt lengths and from simulated experiments."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from recipes.claim.arms import ARMS
from recipes.claim.decision import LEVEL, SMALLEST, bootstrap, relative_gain
from recipes.claim.pricing import Price

if TYPE_CHECKING:
    from recipes.claim.analysis import Curves

REPETITIONS = 4000
DRAWS = 1000
"""Bootstrap draws per repetition."""


def pooled_gain(curves: Sequence["Curves"], price: Price, several: str, n: int) -> dict[str, float] | None:
    """Compute the gain over K = 1 at equal cost in the shared layout, with each seed's KL averaged over all lengths.

    A prompt's content does not depend on its length, so only the price should. Only seeds that are complete at every
    length are used. Returns None if the runs of K = 1 were not long enough.

    Args:
        curves: `Curves` of every prompt length.
        price: price of the length that is paid for.
        several: name of the arm with several responses.
        n: number of prompts in the arm with K = 8.
    """
    arm, one = ARMS[several], ARMS["k1"]
    pairs = price.pairs_for(one, price.cost(arm, arm.k * n, n, "shared_prefix"), n, "shared_prefix")
    if not one.checkpoints[0] * n <= pairs <= one.pairs(n) * (1 + 1e-3):
        return None
    seeds = sorted(set.intersection(*(set(own.seeds) for own in curves)))
    if not seeds:
        return None

    def pooled(name: str, at: float) -> np.ndarray:
        return np.mean([[own.kl(name, at)[own.seeds.index(seed)] for seed in seeds] for own in curves], axis=0)

    return asdict(bootstrap(relative_gain, pooled("k1", min(pairs, one.pairs(n))), pooled(several, arm.k * n)))


def rule_power(
    one: np.ndarray, several: np.ndarray, *, gain: float = SMALLEST, repetitions: int = REPETITIONS, seed: int = 0
) -> dict[str, float]:
    """Estimate how often the rule supports a true gain, and how often the percentile interval contains it.

    Experiments with the same number of seeds are drawn from a normal distribution with the measured covariance of the
    two KL. The mean KL of several responses is shifted to give the true gain.

    Args:
        one: [seeds] KL of K = 1 at equal cost.
        several: [seeds] KL of several responses.
        gain: the true gain.
        repetitions: number of simulated experiments.
        seed: seed of the draws.
    """
    random = np.random.default_rng(seed)
    means = [one.mean(), (1 - gain) * one.mean()]
    chosen = random.integers(len(one), size=(DRAWS, len(one)))
    counts = np.array([np.bincount(row, minlength=len(one)) for row in chosen]) / len(one)
    drawn = random.multivariate_normal(means, np.cov(one, several), size=(repetitions, len(one)))
    supported, held = 0, 0
    for experiment in drawn:
        low, high = np.quantile(relative_gain(*(counts @ experiment).T), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        supported += int(low > 0 and relative_gain(*experiment.mean(axis=0)) >= SMALLEST)
        held += int(low <= gain <= high)
    return {
        "gain": gain,
        "seeds": len(one),
        "supported": supported / repetitions,
        "coverage": held / repetitions,
    }
