"""`filter_then_spread`: drop the worse half of the pool, then choose responses that are far apart.

The simulator of "Escaping the Mode Lottery" (arXiv 2606.00544) runs this algorithm under the name GRADES. The
published gradient cosine of 0.66 and EMSE (bias² plus variance of the loss estimate) of 0.132 belong to it. For
language-model data, the paper uses `diverse_best_k`.
"""

from collections.abc import Sequence

import numpy as np

from mrt_plugin.options import SelectionOptions
from mrt_plugin.selection.pool import Picks, Pool, Selector

QUANTILE = 0.5
"""Responses with a score below this quantile of their pool are dropped, as in the authors' simulator."""


def _choose(pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
    """Choose the best response, then repeatedly the one whose nearest pick is farthest (distance 1 - cosine)."""
    return [_spread(pool, options.k) for pool in pools]


def _spread(pool: Pool, k: int) -> Picks:
    # The responses that are kept come first, because tie order sorts by score. There are at least K.
    good = max(k, int(np.sum(pool.scores >= np.quantile(pool.scores, QUANTILE))))
    cosines = pool.cosines[:good, :good]
    picked = [0]
    nearest = cosines[0].copy()
    while len(picked) < k:
        nearest[picked[-1]] = np.inf
        picked.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, cosines[picked[-1]])
    return Picks(picked)


filter_then_spread = Selector(_choose, needs_scores=True, needs_embeddings=True)
