"""Estimate the expected best of m samples from n samples that were drawn once."""

import math
from collections.abc import Sequence

import numpy as np


def expected_best(values: np.ndarray, m: int) -> np.ndarray:
    """Return the largest of m values, averaged over all ways to choose m of n.

    The result is exact and unbiased; no random subsets are drawn. With the values in rising order, the j-th of n is
    the largest in C(j-1, m-1) of the C(n, m) subsets. For values of 0 and 1 with c ones this is
    1 - C(n-c, m)/C(n, m): pass@k with k = m (Chen et al., "Evaluating Large Language Models Trained on Code", arXiv
    2107.03374, equation 1).

    Args:
        values: [..., n]
        m: at least 1, at most n.

    Returns:
        [...]

    Raises:
        ValueError: for an m outside 1 to n.

    Example:

    >>> float(expected_best(np.array([3.0, 1.0, 2.0]), 2))  # of (3, 1), (3, 2) and (1, 2)
    2.6666666666666665
    """
    n = values.shape[-1]
    if not 1 <= m <= n:
        raise ValueError(f"The best of m={m} cannot be had from {n} samples: m must be between 1 and their number.")
    whole = math.comb(n, m)
    weights = np.array([math.comb(rank, m - 1) / whole for rank in range(n)])
    return np.asarray(np.sort(values, axis=-1) @ weights)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased pass@k: the probability that k of n samples, c of them right, include a right one.

    Example:

    >>> round(pass_at_k(n=10, c=3, k=2), 6)
    0.533333
    """
    return float(expected_best(np.arange(n) >= n - c, k))


def levels(most: int, asked: Sequence[int] | None = None) -> list[int]:
    """Return the numbers of samples to report at, up to `most`: those `asked` for, or powers of two and `most`.

    Example:

    >>> levels(12), levels(12, [1, 5, 50])
    ([1, 2, 4, 8, 12], [1, 5])
    """
    if most < 1:
        return []
    if asked:
        return sorted({m for m in asked if 1 <= m <= most})
    return sorted({2**power for power in range(most.bit_length())} | {most})
