"""`diverse_best_k` (DBKoN): keep K good responses that cover the good part of the pool."""

from collections.abc import Sequence

import numpy as np

from mrt_plugin.selection.facility_location import FLOOR, maximise
from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings


def choose(pools: Sequence[Pool], settings: Settings) -> list[Choice]:
    """Choose by greedy facility location, weighted by score."""
    return maximise(pools, [quality(pool.scores, settings.alpha) for pool in pools], settings)  # type: ignore[arg-type]


def quality(scores: np.ndarray, alpha: float) -> np.ndarray:
    """Return the weights w = clip(score, 1e-4, 1)^alpha, with the scores first rescaled to [0, 1].

    Equal scores become 1. As in the authors' code, scores within 1e-8 count as equal.

    Args:
        scores: [N], finite.
        alpha: at least 0; 0 makes all weights 1.

    Returns:
        [N] float64.
    """
    half = scores / 2  # the range of the halved scores cannot overflow
    span = half.max() - half.min()
    stretched = np.ones(len(scores)) if span < 0.5e-8 else (half - half.min()) / span
    weights: np.ndarray = np.clip(stretched, FLOOR, 1.0) ** alpha
    return weights


SELECTOR = Selector(choose, needs_scores=True, needs_embeddings=True)
