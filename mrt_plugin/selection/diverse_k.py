"""`diverse_k` (DKoN): keep K responses that cover the pool. Scores only decide ties."""

from collections.abc import Sequence

import numpy as np

from mrt_plugin.selection.facility_location import maximise
from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings


def choose(pools: Sequence[Pool], settings: Settings) -> list[Choice]:
    """Choose by greedy facility location with all weights 1."""
    return maximise(pools, [np.ones(pool.size) for pool in pools], settings)


SELECTOR = Selector(choose, needs_embeddings=True)
