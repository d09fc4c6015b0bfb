"""Selectors other than facility location: `random_k` (RKoN), `best_k` (BKoN), `all` and `filter_then_spread`."""

from collections.abc import Sequence

import numpy as np

from mrt_plugin.options import SelectionOptions
from mrt_plugin.selection.pool import Picks, Pool, Selector

QUANTILE = 0.5
"""`filter_then_spread` drops responses with a score below this quantile of their pool, as the authors' simulator."""


def _random_k(pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
    """Choose the K smallest hashes: a uniform draw that depends only on the seed, the group and its responses."""
    return [Picks(np.argsort(pool.keys)[: options.k].tolist()) for pool in pools]


def _best_k(pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
    """Choose the first K in tie order, which sorts by score."""
    return [Picks(list(range(options.k))) for _ in pools]


def _all(pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
    return [Picks(list(range(pool.size))) for pool in pools]


def _filter_then_spread(pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
    """Drop the worse half, choose the best, then repeatedly the response whose nearest pick is farthest.

    The simulator of arXiv 2606.00544 calls this GRADES; its published cosine of 0.66 and EMSE of 0.132 belong to it.
    """
    return [_spread(pool, options.k) for pool in pools]


def _spread(pool: Pool, k: int) -> Picks:
    # The responses that are kept come first, because tie order sorts by score. There are at least K.
    good = max(k, int(np.sum(pool.scores >= np.quantile(pool.scores, QUANTILE))))
    cosines = pool.cosines[:good, :good]
    picked, nearest = [0], cosines[0].copy()
    while len(picked) < k:
        nearest[picked[-1]] = np.inf
        picked.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, cosines[picked[-1]])
    return Picks(picked)


random_k = Selector(_random_k)
best_k = Selector(_best_k, needs_scores=True)
keep_all = Selector(_all, keeps_all=True)
filter_then_spread = Selector(_filter_then_spread, needs_scores=True, needs_embeddings=True)
