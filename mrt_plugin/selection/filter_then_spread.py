"""`filter_then_spread`: drop the worse half of the pool, then choose responses that are far apart.

The simulator of "Escaping the Mode Lottery" (arXiv 2606.00544) runs this algorithm under the name GRADES. The
published gradient cosine of 0.66 and EMSE (bias² plus variance of the loss estimate) of 0.132 belong to it. For
language-model data, the paper uses `diverse_best_k`.
"""

from collections.abc import Sequence

import numpy as np

from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings

QUANTILE = 0.5
"""Responses with a score below this quantile of their pool are dropped, as in the authors' simulator."""


def choose(pools: Sequence[Pool], settings: Settings) -> list[Choice]:
    """Choose the best response, then repeatedly the one whose nearest pick is farthest (distance 1 - cosine)."""
    return [_spread(pool.cosines[:kept, :kept], settings.k) for pool in pools for kept in [_good(pool, settings.k)]]  # type: ignore[index]


def _good(pool: Pool, k: int) -> int:
    """Return the number of responses to keep, at least K. They come first, because tie order sorts by score."""
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
