"""Greedy maximisation of a weighted facility location, many pools at a time.

The objective F of a set S of candidates is (arXiv 2606.00544, section on selection, and the authors' code)

    F(S) = sum_i b_i · max_{j in S} w_j · s_ij

with the similarity s_ij of candidates i and j, the weights w_j and b_i = max(w_i, 1e-4). Each of K greedy steps adds
the candidate that increases F most. F is monotone and submodular, so the result reaches at least (1 - 1/e) of the best
F of any K candidates.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from mrt_plugin.options import Similarity
from mrt_plugin.selection.pool import Choice, Pool, Settings

FLOOR = 1e-4
"""The minimum weight of a candidate, before and after the exponent."""

UNIT = 2.0**-40
"""The terms of F are rounded to multiples of this.

Sums of up to 8,192 terms are then exact in float64, so gains do not depend on the order of summation. The picks are
the same in a batch of any size and shape, and equal gains compare as equal."""

BATCH_CELLS = 2**17
"""Number of similarities processed at once: 1 MiB of float64, which stays in the processor's cache."""


def maximise(pools: Sequence[Pool], weights: Sequence[np.ndarray], settings: Settings) -> list[Choice]:
    """Return K greedy picks for each pool. Among candidates of equal gain, the first in tie order is picked.

    Args:
        pools: pools, each with N > K candidates and their cosines.
        weights: the weights w, [N], of each pool.

    Returns:
        For each pool, K positions in the order of picking, with their gains in F. A gain of exactly 0 means that the
        earlier picks already cover everything that this response covers.
    """
    choices: list[Choice | None] = [None] * len(pools)
    for batch in _batches([pool.size for pool in pools]):
        width = max(pools[index].size for index in batch)
        terms = np.zeros((len(batch), width, width))
        barred = np.ones((len(batch), width), dtype=bool)
        for place, index in enumerate(batch):
            count = pools[index].size
            cosines = pools[index].cosines
            assert cosines is not None
            _terms(cosines, weights[index], settings.similarity, out=terms[place, :count, :count])
            barred[place, :count] = False
        picks, gains = _greedy(terms, barred, settings.k)
        for place, index in enumerate(batch):
            choices[index] = Choice(picks[place].tolist(), gains[place].tolist())
    return choices  # type: ignore[return-value]


def similarities(cosines: np.ndarray, similarity: Similarity, out: np.ndarray | None = None) -> np.ndarray:
    """Convert cosines to similarities s.

    `paper`: s = (cos + 1) / 2. `rescaled`: the cosines are rescaled so that the pool's smallest becomes 0 and 1
    stays 1.

    Args:
        cosines: [N, N] with 1 on the diagonal.
        similarity: `paper` or `rescaled`.
        out: [N, N], the array to write to instead of a new one.

    Returns:
        [N, N] float64 in [0, 1]. A pool of identical responses has s = 1 everywhere.
    """
    least = -1.0 if similarity == "paper" else cosines.min()
    if least == 1.0:
        least = 0.0
    shifted: np.ndarray = np.subtract(cosines, least, out=out)
    shifted /= 1.0 - least
    return shifted


def _terms(cosines: np.ndarray, weights: np.ndarray, similarity: Similarity, out: np.ndarray) -> None:
    """Write b_i · w_j · s_ij [N, N], in multiples of `UNIT`, to `out`: the gain of row i from candidate j alone."""
    similarities(cosines, similarity, out)
    out *= np.maximum(weights, FLOOR)[:, None] * (weights / UNIT)
    np.rint(out, out=out)


def _greedy(terms: np.ndarray, barred: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the picks [G, k] and gains [G, k] of G pools.

    `terms` [G, N, N] are 0 where a smaller pool is padded. `barred` [G, N] marks the padding; the picks are added to
    it.
    """
    groups = np.arange(len(terms))
    picks = np.empty((len(terms), k), dtype=np.int64)
    values = np.zeros((len(terms), k + 1))
    covered = np.zeros(terms.shape[:2])
    ones = np.ones((1, terms.shape[1]))
    for step in range(k):
        # Row i keeps what it has from the picks so far, whichever candidate comes next.
        np.maximum(terms, covered[:, :, None], out=terms)
        value = (ones @ terms)[:, 0]  # sum over rows, ten times as fast as .sum(axis=1)
        value[barred] = -1.0
        best = value.argmax(axis=1)
        picks[:, step], values[:, step + 1] = best, value[groups, best]
        barred[groups, best] = True
        covered = terms[groups, :, best]
    return picks, np.diff(values) * UNIT


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Group pools of similar size, so that padding stays small and a batch fits in `BATCH_CELLS`."""
    batch: list[int] = []
    smallest = 0
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index]):
        size = sizes[index]
        if batch and (size > smallest * 1.25 + 2 or (len(batch) + 1) * size**2 > BATCH_CELLS):
            yield batch
            batch = []
        smallest = smallest if batch else size
        batch.append(index)
    if batch:
        yield batch
