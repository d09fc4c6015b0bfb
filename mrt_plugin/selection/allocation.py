"""Adaptive allocation: distribute a budget of responses over prompts whose responses vary by different amounts.

If the losses of prompt x's k_x responses have variance u_x, the mean over n prompts has the variance sum(u_x/k_x)/n².
One more response reduces it by u_x·(1/k_x - 1/(k_x+1))/n², less each time, so the greedy choice is optimal.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Features, Value

from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import response_text
from mrt_plugin.options import SelectionOptions
from mrt_plugin.scoring.cosine import cosine_matrix, mean_distance
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.selection.pool import candidates_of

SPREAD = Features({"spread": Value("float64"), "size": Value("int64")})

FLOOR = 1e-6
"""The least score over the largest, so that a prompt whose responses happen to agree can still get more."""


@dataclass(frozen=True)
class Allocation:
    """The responses that each prompt keeps, and the number of prompts at their lower and upper limit."""

    k: list[int]
    wanted: int
    total: int
    at_least: int
    at_most: int

    def summary(self) -> str:
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
) -> Allocation:
    """Give each next response to the prompt where u_x·(1/k_x - 1/(k_x+1)) is largest, with a heap.

    Here u_x = max(FLOOR, score / the largest score)^power, and min(min_k, N_x) <= k_x <= min(max_k, N_x) for a pool of
    N_x. A hash of the prompt's name decides ties. The budget is `target_total`, or else `mean_k` per prompt.
    """
    for name, score in zip(names, scores, strict=True):
        if not 0 <= score < math.inf:
            raise ValueError(
                f"Group {name} has the allocation score {score!r}: it must be a finite number, at least 0."
            )
    wanted = round((mean_k or 0) * len(scores)) if target_total is None else target_total
    lowest = [min(min_k, size) for size in pool_sizes]
    highest = [size if max_k is None else min(max_k, size) for size in pool_sizes]
    k, left = list(lowest), wanted - sum(lowest)
    largest = max(scores, default=0.0) or 1.0
    # Rounded to twelve digits: a change of unit must not make equal scores unequal.
    gains = [max(FLOOR, float(f"{score / largest:.12g}")) ** power for score in scores]
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
    at_least = sum(got == low < high for got, low, high in zip(k, lowest, highest, strict=True))
    at_most = sum(got == high for got, high in zip(k, highest, strict=True))
    return Allocation(k, wanted, sum(k), at_least, at_most)


def spread_batch(
    batch: dict[str, list[Any]], *, options: SelectionOptions, seed: int, embedder: Embedder | None
) -> dict[str, list[Any]]:
    """Return the columns of `SPREAD`: how much each group's candidates differ, and their number."""
    spreads, sizes, score = [], [], options.allocation_score
    for place, responses in enumerate(batch["responses"]):
        candidates = candidates_of(batch, place, n=options.n, seed=seed)
        sizes.append(len(candidates))
        texts = [response_text(responses[index]) for index in candidates]
        if score == "diversity":
            assert embedder is not None
            spreads.append(mean_distance(cosine_matrix(texts, embedder)) if len(texts) > 1 else 0.0)
            continue
        if score == "length":
            values = np.array([len(text) for text in texts], dtype=np.float64)
        else:
            given, count = batch[score][place], len(responses)
            found = np.array(np.nan if given is None else given, dtype=np.float64)
            if found.shape not in ((), (count,)) or not np.isfinite(found).all():
                raise ValueError(
                    f"allocation_score={score!r}: group {batch['id'][place]} has {given!r} there, which is neither a "
                    f"finite number nor {count} of them, one per response."
                )
            if found.shape == ():
                spreads.append(float(found))
                continue
            values = found[candidates]
        spreads.append(float(values.var(ddof=1)) if len(values) > 1 else 0.0)
    return {"spread": spreads, "size": sizes}
