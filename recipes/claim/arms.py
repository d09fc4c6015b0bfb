"""Define the arms: the pairs of a run, their order, and whether the shared layout can compute prompts once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes.claim.world import POOL


@dataclass(frozen=True)
class Arm:
    """One way to spend a number of training pairs."""

    name: str
    title: str
    k: int
    """Responses per group."""
    prompts: int
    """Prompts of the run, in multiples of n, the number of prompts in the arm with K = 8."""
    passes: int = 1
    """Number of passes over each group."""
    redraw: bool = False
    """Whether every pass draws another random response from the pool."""
    scattered: bool = False
    """Whether each pair is a group of its own, shuffled over the run."""
    checkpoints: tuple[float, ...] = ()
    """Pairs at which the distance to the truth is measured, in multiples of n, rising. The last is the end."""

    @property
    def shares(self) -> bool:
        """Return whether the shared layout computes fewer tokens than the expanded one."""
        return self.k > 1 and not self.scattered

    def pairs(self, n: int) -> int:
        """Return the number of pairs of the run."""
        return self.k * self.prompts * n * self.passes


ONE = (1, 1.5, 2, 3, 4, 6, 8)
ARMS = {
    arm.name: arm
    for arm in (
        Arm("k1", "K = 1, more prompts", 1, 8, checkpoints=ONE),
        Arm("k2", "K = 2", 2, 4, checkpoints=(2, 3, 4, 6, 8)),
        Arm("k4", "K = 4", 4, 2, checkpoints=(2, 4, 6, 8)),
        Arm("k8", "K = 8", 8, 1, checkpoints=(2, 4, 8)),
        Arm("k1_epochs", "K = 1, more epochs", 1, 1, passes=8, checkpoints=ONE),
        Arm("k1_redraw", "K = 1, redrawn every epoch", 1, 1, passes=8, redraw=True, checkpoints=ONE),
        Arm("k8_scattered", "K = 8, pairs shuffled across steps", 8, 1, scattered=True, checkpoints=(2, 4, 8)),
    )
}
"""Every arm sees 8n pairs in total. The first n prompts of a seed are the same in every arm."""


def arm_groups(arm: Arm, pool: Sequence[dict[str, Any]], n: int, seed: int) -> list[dict[str, Any]]:
    """Build an arm's groups for the trainer, which then chooses K of each pool.

    Args:
        arm: an arm of `ARMS`.
        pool: at least `arm.prompts` times `n` groups of `POOL` responses; the first groups are used.
        n: number of prompts in the arm with K = 8.
        seed: seed of the shuffle if pairs are scattered.
    """
    groups = list(pool[: arm.prompts * n])
    if not arm.scattered:
        return groups
    pairs = [
        {"id": f"{group['id']}#{place}", "prompt": group["prompt"], "responses": [response]}
        for group in groups
        for place, response in enumerate(group["responses"])
    ]
    order = np.random.default_rng([seed, 3]).permutation(len(pairs))
    return [pairs[place] for place in order]


def responses_drawn(arm: Arm, pairs: float, n: int) -> tuple[float, float]:
    """Return how many prompts were used and how many responses had to exist to train on `pairs`.

    An arm that redraws needs its pool of N responses per prompt before it starts.

    Example:

    >>> responses_drawn(ARMS["k4"], 400, n=100), responses_drawn(ARMS["k1_epochs"], 400, n=100)
    ((100.0, 400.0), (100.0, 100.0))
    """
    if arm.scattered:
        return float(min(pairs, arm.prompts * n)), float(pairs)
    prompts = min(pairs / arm.k, float(arm.prompts * n))
    return prompts, prompts * (POOL if arm.redraw else arm.k)
