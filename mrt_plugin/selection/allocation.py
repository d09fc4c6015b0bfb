"""Adaptive allocation: how a budget of responses is spread over prompts that differ in how much they vary.

With k_x responses of a prompt whose losses have variance u_x, the mean over prompts has the variance sum(u_x/k_x)/n².
One more response to prompt x lowers it by u_x·(1/k_x - 1/(k_x+1))/n², less each time, so giving every next response
to the prompt where it lowers most is optimal. With unequal k_x train with `loss_aggregation: prompt`: under `token`,
a prompt with more responses would weigh more.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mrt_plugin.groups.keys import digest


@dataclass(frozen=True)
class Allocation:
    """How many responses each prompt keeps, and what the limits did to the wish."""

    k: list[int]
    """Per prompt, in the order given."""
    wanted: int
    """The total asked for."""
    total: int
    """The total given: the sum of `k`."""
    at_least: int
    """Prompts held at their lower limit, though they scored lower than others that got more."""
    at_most: int
    """Prompts held at their upper limit: max_k, or the size of their pool."""

    def summary(self) -> str:
        """One line for a log."""
        line = f"adaptive allocation: {self.total:,} responses over {len(self.k):,} prompts"
        if self.total != self.wanted:
            side = "least" if self.total > self.wanted else "most"
            line += f" ({self.wanted:,} were asked for, the limits allow {self.total:,} at {side})"
        return line + f"; {self.at_least:,} prompts at their lower limit, {self.at_most:,} at their upper limit."


def allocate(
    scores: Sequence[float],
    pool_sizes: Sequence[int],
    names: Sequence[str],
    *,
    target_total: int | None = None,
    mean_k: float | None = None,
    min_k: int = 1,
    max_k: int | None = None,
    power: float = 1.0,
    floor: float = 1e-6,
) -> Allocation:
    """Spread responses over prompts, each next one where u_x·(1/k_x - 1/(k_x+1)) is largest.

    min(min_k, N_x) <= k_x <= min(max_k, N_x). A heap: O(T log n) for T responses and n prompts. The result depends on
    no row order: ties go by a hash of the prompt's name.

    Args:
        scores: per prompt; the variance of its losses is the one that the optimum is for.
        pool_sizes: N_x, at least 1.
        names: the groups' ids, for ties.
        target_total: responses to give in total.
        mean_k: instead, their mean over prompts: the total is round(mean_k · prompts).
        min_k: fewest per prompt.
        max_k: most per prompt; the pool by default.
        power: u_x = max(floor, score_x / the largest score)^power; 0 makes all prompts equal. So the scores' unit does
            not matter.
        floor: the least share of the largest score, so that a prompt whose responses happen to agree keeps its place
            in the queue.

    Raises:
        ValueError: for limits that contradict each other, lists of different lengths, or a score that is negative or
            not finite.

    Example:

    >>> allocate([4.0, 1.0, 1.0], [8, 8, 8], ["a", "b", "c"], mean_k=2).k
    [3, 1, 2]
    """
    if not len(scores) == len(pool_sizes) == len(names):
        raise ValueError(f"{len(scores)} scores, {len(pool_sizes)} pools and {len(names)} names: give one per prompt.")
    if (target_total is None) == (mean_k is None):
        raise ValueError("Give either target_total or mean_k: how many responses there are to spread.")
    if mean_k is not None and not 0 < mean_k < math.inf:
        raise ValueError(f"mean_k={mean_k!r} must be a finite number above 0.")
    if min_k < 1 or (max_k is not None and max_k < min_k):
        raise ValueError(f"min_k={min_k} and max_k={max_k}: they must satisfy 1 <= min_k <= max_k.")
    if not floor > 0:
        raise ValueError(f"floor={floor!r} must be above 0.")
    for name, score in zip(names, scores, strict=True):
        if not 0 <= score < math.inf:
            raise ValueError(
                f"Group {name} has the allocation score {score!r}: a score says how much a prompt's responses vary. "
                "It must be a finite number, at least 0."
            )
    wanted = round(mean_k * len(scores)) if target_total is None and mean_k is not None else target_total
    assert wanted is not None

    lowest = [min(min_k, size) for size in pool_sizes]
    highest = [size if max_k is None else min(max_k, size) for size in pool_sizes]
    k, left = list(lowest), wanted - sum(lowest)
    largest = max(scores, default=0.0) or 1.0
    # Twelve digits: a change of unit must not turn equal scores into unequal ones.
    gains = [max(floor, float(f"{score / largest:.12g}")) ** power for score in scores]
    ties = [digest(b"allocate", name.encode()) for name in names]

    def entry(x: int) -> tuple[float, bytes, int]:
        return -gains[x] * (1 / k[x] - 1 / (k[x] + 1)), ties[x], x

    queue = [entry(x) for x in range(len(k)) if k[x] < highest[x]]
    heapq.heapify(queue)
    while left > 0 and queue:
        x = queue[0][2]
        k[x] += 1
        left -= 1
        if k[x] < highest[x]:
            heapq.heapreplace(queue, entry(x))
        else:
            heapq.heappop(queue)
    return Allocation(
        k=k,
        wanted=wanted,
        total=sum(k),
        at_least=sum(got == low < high for got, low, high in zip(k, lowest, highest, strict=True)),
        at_most=sum(got == high for got, high in zip(k, highest, strict=True)),
    )
