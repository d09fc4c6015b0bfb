"""`diverse_k` (DKoN) and `diverse_best_k` (DBKoN): greedy facility location, many pools at a time.

F(S) = sum_i b_i · max_{j in S} w_j · s_ij (arXiv 2606.00544 and the authors' code) with the similarity s_ij of
candidates i and j, the weights w_j and b_i = max(w_i, 1e-4). F is monotone and submodular, so K greedy steps reach at
least (1 - 1/e) of the best F of any K candidates.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from mrt_plugin.options import SelectionOptions, Similarity
from mrt_plugin.selection.pool import Picks, Pool, Selector

FLOOR = 1e-4
"""The minimum weight of a candidate, before and after the exponent."""

UNIT = 2.0**-40
"""The terms of F are rounded to multiples of this: sums of up to 8,192 terms are exact in float64 in any order, so
the picks are the same in a batch of any size and shape, and equal gains compare as equal."""

BATCH_CELLS = 2**17
"""Number of similarities processed at once: 1 MiB of float64, which stays in the processor's cache."""


def _diverse_k(pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
    """Choose with all weights 1. Scores only decide ties."""
    return maximise(pools, [np.ones(pool.size) for pool in pools], options)


def _diverse_best_k(pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
    scores = np.zeros((len(pools), max(pool.size for pool in pools)))
    for row, pool in zip(scores, pools, strict=True):
        row[: pool.size] = pool.scores
        row[pool.size :] = pool.scores[0]
    weights = quality(scores, options.alpha)
    return maximise(pools, [row[: pool.size] for row, pool in zip(weights, pools, strict=True)], options)


def quality(scores: np.ndarray, alpha: float) -> np.ndarray:
    """Return the weights w = clip(score, 1e-4, 1)^alpha [..., N], with each pool's scores first rescaled to [0, 1].

    Equal scores become 1. As in the authors' code, scores within 1e-8 count as equal.
    """
    half = scores / 2  # the range of the halved scores cannot overflow
    least = half.min(axis=-1, keepdims=True)
    span = half.max(axis=-1, keepdims=True) - least
    equal = span < 0.5e-8
    stretched = np.where(equal, 1.0, (half - least) / np.where(equal, 1.0, span))
    weights: np.ndarray = np.clip(stretched, FLOOR, 1.0) ** alpha
    return weights


def maximise(pools: Sequence[Pool], weights: Sequence[np.ndarray], options: SelectionOptions) -> list[Picks]:
    """Return K greedy picks for each pool and its weights w [N], with their gains in F.

    Of equal gains, the first in tie order is picked. A gain of 0 means that the earlier picks cover all of it.
    """
    found: list[Picks] = [Picks([])] * len(pools)
    for batch in _batches([pool.size for pool in pools]):
        sizes = np.array([pools[index].size for index in batch])
        width = sizes.max()
        padding = np.arange(width) >= sizes[:, None]
        if padding.any():
            terms = np.ones((len(batch), width, width))
            factors = np.zeros((len(batch), width))
            for place, index in enumerate(batch):
                terms[place, : sizes[place], : sizes[place]] = pools[index].cosines
                factors[place, : sizes[place]] = weights[index]
        else:
            terms = np.array([pools[index].cosines for index in batch])
            factors = np.array([weights[index] for index in batch])
        _weigh(terms, factors, padding, options.similarity)
        picks, gains = _greedy(terms, padding, options.k)
        for index, positions, values in zip(batch, picks.tolist(), gains.tolist(), strict=True):
            found[index] = Picks(positions, values)
    return found


def _weigh(cosines: np.ndarray, weights: np.ndarray, padding: np.ndarray, similarity: Similarity) -> None:
    """Make cosines [G, N, N] the gains b_i · w_j · s_ij of row i from candidate j alone, in multiples of `UNIT`."""
    similarities(cosines, similarity, cosines)
    rows = np.maximum(weights, FLOOR)
    rows[padding] = 0
    cosines *= rows[:, :, None] * (weights / UNIT)[:, None, :]
    np.rint(cosines, out=cosines)


def similarities(cosines: np.ndarray, similarity: Similarity, out: np.ndarray | None = None) -> np.ndarray:
    """Convert cosines [..., N, N] to similarities s in [0, 1], 1 for identical responses.

    `paper`: s = (cos + 1) / 2. `rescaled`: the pool's smallest cosine becomes 0 and 1 stays 1.
    """
    if similarity == "paper":
        shifted = np.add(cosines, 1.0, out=out)
        shifted *= 0.5
        return shifted
    least = cosines.min(axis=(-2, -1), keepdims=True)
    least[least == 1.0] = 0.0
    shifted = np.subtract(cosines, least, out=out)
    shifted /= 1.0 - least
    return shifted


def _greedy(terms: np.ndarray, barred: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the picks [G, k] and gains [G, k] of G pools. Where `barred` [G, N], nothing is picked."""
    groups = np.arange(len(terms))
    picks = np.empty((len(terms), k), dtype=np.int64)
    values = np.zeros((len(terms), k + 1))
    ones = np.ones((1, terms.shape[1]))
    for step in range(k):
        value = (ones @ terms)[:, 0]  # sum over rows, ten times as fast as .sum(axis=1)
        value[barred] = -1.0
        best = value.argmax(axis=1)
        picks[:, step], values[:, step + 1] = best, value[groups, best]
        barred[groups, best] = True
        if step < k - 1:
            # Row i keeps what it has from the picks so far, whichever candidate comes next.
            np.maximum(terms, terms[groups, :, best][:, :, None], out=terms)
    return picks, np.diff(values) * UNIT


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Group pools of similar size, so that padding stays small and a batch fits in `BATCH_CELLS`."""
    batch: list[int] = []
    smallest = 0
    for size, index in sorted((size, index) for index, size in enumerate(sizes)):
        if batch and (size > smallest * 1.25 + 2 or (len(batch) + 1) * size**2 > BATCH_CELLS):
            yield batch
            batch = []
        smallest = smallest if batch else size
        batch.append(index)
    if batch:
        yield batch


diverse_k = Selector(_diverse_k, needs_embeddings=True)
diverse_best_k = Selector(_diverse_best_k, needs_scores=True, needs_embeddings=True)
