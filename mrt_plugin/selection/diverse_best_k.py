"""`diverse_best_k` (DBKoN): K responses that are good and cover the good part of the pool."""

from collections.abc import Sequence

import numpy as np

from mrt_plugin.selection.facility_location import FLOOR, maximise
from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings


def choose(pools: Sequence[Pool], settings: Settings) -> list[Choice]:
    """Greedy facility location, weighted by score."""
    return maximise(pools, [quality(pool.scores, settings.alpha) for pool in pools], settings)  # type: ignore[arg-type]


def quality(scores: np.ndarray, alpha: float) -> np.ndarray:
    """w = clip(score, 1e-4, 1)^alpha, with the scores first stretched to [0, 1]; equal scores become 1.

    The authors' code counts scores within 1e-8 as equal, and so does this.

    Args:
        scores: [N] finite.
        alpha: at least 0; 0 makes all weights 1.

    Returns:
        [N] float64.
    """
    half = scores / 2  # the span of halves cannot overflow
    span = half.max() - half.min()
    stretched = np.ones(len(scores)) if span < 0.5e-8 else (half - half.min()) / span
    weights: np.ndarray = np.clip(stretched, FLOOR, 1.0) ** alpha
    return weights


SELECTOR = Selector(choose, needs_scores=True, needs_embeddings=True)
