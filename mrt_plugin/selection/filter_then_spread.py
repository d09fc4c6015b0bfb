"""`filter_then_spread`: drop the worse half of the pool, then spread out over the rest.

This is what the simulator of "Escaping the Mode Lottery" (arXiv 2606.00544) runs under the name GRADES; the published
gradient cosine of 0.66 and EMSE of 0.132 belong to it. For language-model data the paper uses `diverse_best_k`.
"""

from collections.abc import Sequence

import numpy as np

from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings

QUANTILE = 0.5
"""Responses that score below this quantile of their pool are dropped, as in the authors' simulator."""


def choose(pools: Sequence[Pool], settings: Settings) -> list[Choice]:
    """The best response first, then always the one farthest (1 - cosine) from its nearest among those picked."""
    return [_spread(pool.cosines[:kept, :kept], settings.k) for pool in pools for kept in [_good(pool, settings.k)]]  # type: ignore[index]


def _good(pool: Pool, k: int) -> int:
    """How many responses are good enough: they come first, since tie order goes by score. At least K."""
    return max(k, int(np.sum(pool.scores >= np.quantile(pool.scores, QUANTILE))))  # type: ignore[arg-type, operator]


def _spread(cosines: np.ndarray, k: int) -> Choice:
    picked = [0]
    nearest = cosines[0].copy()
    while len(picked) < k:
        nearest[picked[-1]] = np.inf
        picked.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, cosines[picked[-1]])
    return Choice(picked)


SELECTOR = Selector(choose, needs_scores=True, needs_embeddings=True)
