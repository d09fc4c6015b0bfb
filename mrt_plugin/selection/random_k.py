"""`random_k` (RKoN): draw K of N uniformly, without replacement. The unbiased default."""

from collections.abc import Sequence

import numpy as np

from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings


def choose(pools: Sequence[Pool], settings: Settings) -> list[Choice]:
    """Choose the K smallest hashes: a uniform draw that depends only on the seed, the group and its responses."""
    return [Choice(np.argsort(pool.keys)[: settings.k].tolist()) for pool in pools]


SELECTOR = Selector(choose)
