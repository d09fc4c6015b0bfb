"""What a selector sees and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mrt_plugin.options import Similarity


@dataclass(frozen=True)
class Pool:
    """The candidates of one group, more than K of them, in tie order.

    Tie order is the better score first (where there are scores), then a hash of (seed, group id, response text). So
    a selector that takes the first of several equals breaks ties as it should, and never by the pool's order.
    """

    size: int
    """N."""
    scores: np.ndarray | None
    """[N] float64, finite, falling."""
    cosines: np.ndarray | None
    """[N, N] float64 cosines of the responses' embeddings, rounded to 6 digits, with 1 on the diagonal."""
    hashes: Callable[[], np.ndarray]
    """Computes `keys`: most selections need no hash, and hashing costs more than choosing."""

    @cached_property
    def keys(self) -> np.ndarray:
        """[N] uint64: the hashes, uniform and distinct."""
        return self.hashes()


@dataclass(frozen=True)
class Settings:
    """The options of a selection."""

    k: int
    alpha: float
    similarity: Similarity


@dataclass(frozen=True)
class Choice:
    """K positions in a pool, in the order they were picked, and what each pick gained, where that means something."""

    picked: list[int]
    gains: list[float] | None = None


@dataclass(frozen=True)
class Selector:
    """A strategy: a function of many pools at once, and what it needs to know about them.

    The answer for a pool must not depend on the other pools of the call.
    """

    choose: Callable[[Sequence[Pool], Settings], list[Choice]]
    needs_scores: bool = False
    needs_embeddings: bool = False
    keeps_all: bool = False
