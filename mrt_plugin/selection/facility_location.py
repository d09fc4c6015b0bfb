"""Greedy maximisation of a weighted facility location, many pools at a time.

The objective (arXiv 2606.00544, section on selection, and the authors' code): with similarities s_ij of candidates i
and j, weights w_j and b_i = max(w_i, 1e-4),

    F(S) = sum_i b_i · max_{j in S} w_j · s_ij

K greedy steps, each adding the candidate that raises F most; F is monotone and submodular, so the result reaches at
least (1 - 1/e) of the best F that any K candidates can.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from mrt_plugin.options import Similarity
from mrt_plugin.selection.pool import Choice, Pool, Settings

FLOOR = 1e-4
"""The least weight of a candidate, before and after the exponent."""

UNIT = 2.0**-40
"""The terms of F are rounded to multiples of this. Sums of up to 8,192 of them are then exact in float64, so gains do
not depend on the order of summation: the same picks in a batch of any size and shape, and equal gains are equal."""

BATCH_CELLS = 2**17
"""Similarities worked on at once: 1 MiB of float64, which stays in the processor's cache."""


def maximise(pools: Sequence[Pool], weights: Sequence[np.ndarray], settings: Settings) -> list[Choice]:
    """K greedy picks for each pool, the first in tie order among those that gain the same.

    Args:
        pools: each with N > K candidates and their cosines.
        weights: [N] w for each pool.

    Returns:
        For each pool K positions in the order they were picked, with their gains in F. A gain of exactly 0 says that
        the responses picked before cover everything that this one could.
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
    """`paper`: s = (cos + 1) / 2. `rescaled`: cosines stretched so that the pool's least becomes 0, while 1 stays 1.

    Args:
        cosines: [N, N] with 1 on the diagonal.
        out: [N, N], where to write instead of a new array.

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
    """b_i · w_j · s_ij in multiples of `UNIT`, [N, N], into `out`: row i gains this much from candidate j alone."""
    similarities(cosines, similarity, out)
    out *= np.maximum(weights, FLOOR)[:, None] * (weights / UNIT)
    np.rint(out, out=out)


def _greedy(terms: np.ndarray, barred: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The picks [G, k] and gains [G, k] of G pools, from terms [G, N, N] that are 0 where a smaller pool is padded.

    `barred` [G, N] marks the padding; the picks are added to it.
    """
    groups = np.arange(len(terms))
    picks = np.empty((len(terms), k), dtype=np.int64)
    values = np.zeros((len(terms), k + 1))
    covered = np.zeros(terms.shape[:2])
    ones = np.ones((1, terms.shape[1]))
    for step in range(k):
        # What row i gets from the picks so far, it keeps whichever candidate comes next.
        np.maximum(terms, covered[:, :, None], out=terms)
        value = (ones @ terms)[:, 0]  # the sum over rows, ten times as fast as .sum(axis=1)
        value[barred] = -1.0
        best = value.argmax(axis=1)
        picks[:, step], values[:, step + 1] = best, value[groups, best]
        barred[groups, best] = True
        covered = terms[groups, :, best]
    return picks, np.diff(values) * UNIT


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Pools of similar size together, so that padding stays small and a batch fits `BATCH_CELLS`."""
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
