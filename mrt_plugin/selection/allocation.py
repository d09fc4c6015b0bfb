"""Adaptive allocation: distribute a budget of responses over prompts whose responses vary by different amounts.

Prompt x has k_x responses, and their losses have variance u_x. The mean over n prompts then has the variance
sum(u_x/k_x)/n². One more response for prompt x reduces it by u_x·(1/k_x - 1/(k_x+1))/n², which gets smaller with each
response. So it is optimal to give each next response to the prompt with the largest reduction. With unequal k_x, train
with `loss_aggregation: prompt`: under `token`, a prompt with more responses would have more weight.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from mrt_plugin.engine import map_batches
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import response_text
from mrt_plugin.options import Engine
from mrt_plugin.scoring.cosine import cosine_matrix, mean_distance
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.selection.pool import candidate_texts, candidates_of

SPREAD = Features({"spread": Value("float64"), "size": Value("int64")})


@dataclass(frozen=True)
class Allocation:
    """The number of responses that each prompt keeps, and the effect of the limits."""

    k: list[int]
    """Responses per prompt, in the order of the input."""
    wanted: int
    """The requested total."""
    total: int
    """The allocated total: the sum of `k`."""
    at_least: int
    """Number of prompts at their lower limit whose upper limit is higher: other prompts had a larger gain."""
    at_most: int
    """Number of prompts at their upper limit: max_k, or the size of their pool."""

    def summary(self) -> str:
        """Return one line for the log."""
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
    """Allocate responses to prompts: each next response goes where u_x·(1/k_x - 1/(k_x+1)) is largest.

    The number k_x of prompt x with a pool of N_x responses satisfies min(min_k, N_x) <= k_x <= min(max_k, N_x). A heap
    makes this O(T log n) for T responses and n prompts. The result does not depend on the row order: a hash of the
    prompt's name decides ties.

    Args:
        scores: one score per prompt. The allocation is optimal if the score is the variance of the prompt's losses.
        pool_sizes: N_x per prompt, at least 1.
        names: the groups' ids, for ties.
        target_total: total number of responses.
        mean_k: instead of `target_total`, the mean over prompts. The total is then round(mean_k · prompts).
        min_k: minimum per prompt.
        max_k: maximum per prompt; by default the pool's size.
        power: u_x = max(floor, score_x / the largest score)^power, so the unit of the scores does not matter. 0 makes
            all prompts equal.
        floor: minimum of score_x / the largest score, so that a prompt whose responses happen to agree can still get
            more.

    Raises:
        ValueError: if limits contradict each other, lists have different lengths, or a score is negative or not
            finite.

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
    # Rounded to twelve digits: a change of unit must not make equal scores unequal.
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


@dataclass(frozen=True)
class AdaptiveK:
    """The options of adaptive allocation; see `allocate`."""

    score: str = "diversity"
    """The measure of how much a prompt's responses vary.

    - `diversity`: 1 minus the mean cosine over all pairs of responses.
    - `length`: the variance of the responses' lengths in characters.
    - A column's name: the column holds one number per prompt, or one number per response, whose variance is used.

    The best estimate of the loss results from the variance of the model's loss."""
    mean_k: float | None = None
    target_total: int | None = None
    min_k: int = 1
    max_k: int | None = None

    @property
    def needs_embeddings(self) -> bool:
        """Whether the score is computed from embeddings."""
        return self.score == "diversity"

    def columns(self) -> list[str]:
        """Return the columns that the score is read from, in addition to those that every selection reads."""
        return [] if self.score in ("diversity", "length") else [self.score]


def adaptive_k(
    groups: Dataset,
    plan: AdaptiveK,
    *,
    n: int | None,
    seed: int,
    embedder: Embedder | None,
    num_proc: int | None,
    engine: Engine = "local",
) -> Allocation:
    """Compute a score for every prompt, then the allocation. The result does not depend on the row order.

    Raises:
        ValueError: if the column is missing or has other contents, or if the limits contradict each other.
    """
    for name in plan.columns():
        if name not in groups.column_names:
            raise ValueError(
                f"allocation_score={name!r} is neither `diversity` nor `length`, nor a column of the groups "
                f"({', '.join(groups.column_names)})."
            )
    names = ["id", "responses", "scores", "weights", *plan.columns()]
    wanted = groups.select_columns([name for name in dict.fromkeys(names) if name in groups.column_names])
    embeds = engine == "ray" and embedder is not None and embedder.prepare is not None and plan.needs_embeddings
    measured = map_batches(
        wanted,
        embed_and_spread if embeds else spread_batch,
        {"plan": plan, "n": n, "seed": seed, "embedder": embedder},
        SPREAD,
        batch_size=256,
        description="Measuring how responses differ",
        num_proc=num_proc,
        engine=engine,
        threads=None if embedder is None else embedder.threads(),
    )
    return allocate(
        measured["spread"][:],
        measured["size"][:],
        groups["id"][:],
        target_total=plan.target_total,
        mean_k=plan.mean_k,
        min_k=plan.min_k,
        max_k=plan.max_k,
    )


def embed_and_spread(batch: dict[str, list[Any]], **kwargs: Any) -> dict[str, list[Any]]:
    """Compute the vectors of a batch, then run `spread_batch`; see `mrt_plugin.selection.decide.embed_and_choose`."""
    kwargs["embedder"].prepare([candidate_texts(batch, n=kwargs["n"], seed=kwargs["seed"], at_least=1)])
    return spread_batch(batch, **kwargs)


def spread_batch(
    batch: dict[str, list[Any]], *, plan: AdaptiveK, n: int | None, seed: int, embedder: Embedder | None
) -> dict[str, list[Any]]:
    """Return the columns of `SPREAD`: how much each group's candidates differ, and their number."""
    spreads, sizes = [], []
    for place, name in enumerate(batch["id"]):
        candidates = candidates_of(batch, place, n=n, seed=seed)
        sizes.append(len(candidates))
        texts = [response_text(batch["responses"][place][index]) for index in candidates]
        if plan.score == "diversity":
            assert embedder is not None
            spreads.append(mean_distance(cosine_matrix(texts, embedder)) if len(texts) > 1 else 0.0)
        elif plan.score == "length":
            spreads.append(_variance([float(len(text)) for text in texts]))
        else:
            spreads.append(_given(batch[plan.score][place], candidates, len(batch["responses"][place]), plan, name))
    return {"spread": spreads, "size": sizes}


def _given(value: Any, candidates: list[int], count: int, plan: AdaptiveK, name: str) -> float:
    numbers = np.asarray(value, dtype=np.float64) if value is not None else np.array(np.nan)
    if numbers.shape not in ((), (count,)) or not np.isfinite(numbers).all():
        raise ValueError(
            f"allocation_score={plan.score!r}: group {name} has {value!r} there, which is neither a finite number nor "
            f"{count} of them, one per response."
        )
    return float(numbers) if numbers.shape == () else _variance(numbers[candidates].tolist())


def _variance(values: list[float]) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
