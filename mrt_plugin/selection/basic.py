"""Selectors that compare no responses: `random_k` (RKoN), `best_k` (BKoN) and `all`."""

from collections.abc import Sequence

import numpy as np

from mrt_plugin.options import SelectionOptions
from mrt_plugin.selection.pool import Picks, Pool, Selector


def _random_k(pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
    """Choose the K smallest hashes: a uniform draw that depends only on the seed, the group and its responses."""
    return [Picks(np.argsort(pool.keys)[: options.k].tolist()) for pool in pools]


def _best_k(pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
    """Choose the first K in tie order, which sorts by score."""
    return [Picks(list(range(options.k))) for _ in pools]


def _all(pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
    """Choose all N responses and ignore K. For groups that are already selected."""
    return [Picks(list(range(pool.size))) for pool in pools]


random_k = Selector(_random_k)
best_k = Selector(_best_k, needs_scores=True)
keep_all = Selector(_all, keeps_all=True)
