"""The input and output of a selector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mrt_plugin.options import Similarity


@dataclass(frozen=True)
class Pool:
    """The candidates of one group, more than K of them, in tie order.

    Tie order sorts by score, the best first (where there are scores), then by a hash of (seed, group id, response
    text). So a selector that takes the first of several equal candidates breaks ties correctly, never by the pool's
    order.
    """

    size: int
    """N, the number of candidates."""
    scores: np.ndarray | None
    """[N] float64, finite, in descending order."""
    cosines: np.ndarray | None
    """[N, N] float64 cosines of the responses' embeddings, rounded to 6 digits, with 1 on the diagonal."""
    hashes: Callable[[], np.ndarray]
    """Computes `keys` on demand: most selections need no hash, and hashing takes longer than choosing."""

    @cached_property
    def keys(self) -> np.ndarray:
        """The hashes, [N] uint64, uniform and distinct."""
        return self.hashes()


@dataclass(frozen=True)
class Settings:
    """The options of a selection."""

    k: int
    alpha: float
    similarity: Similarity


@dataclass(frozen=True)
class Choice:
    """K positions in a pool, in the order of picking, and the gain of each pick for selectors that define one."""

    picked: list[int]
    gains: list[float] | None = None


@dataclass(frozen=True)
class Selector:
    """A strategy: a function of many pools at once, and the data that it needs.

    The result for a pool must not depend on the other pools of the call.
    """

    choose: Callable[[Sequence[Pool], Settings], list[Choice]]
    needs_scores: bool = False
    needs_embeddings: bool = False
    keeps_all: bool = False
