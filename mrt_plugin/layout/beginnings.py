"""Find the beginnings that many groups of a dataset have in common, such as a system text."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from mrt_plugin.groups.keys import digest

BLOCK = 64
"""Beginnings are compared in steps of this many tokens."""

COMMON = 0.05
"""The share of all groups that must have a beginning for it to count."""


def common_beginnings(beginnings: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the family of each group, [n], and the tokens that each of its members shares with the others, [n].

    `beginnings` are the tokens that all sequences of a group have in common. A family has a beginning of whole blocks
    that at least 5 % of the groups share. Family 0 shares nothing. In a row, each member of a family after the first
    needs this many tokens less.

    Example:

    >>> system = np.arange(128)
    >>> common_beginnings([np.append(system, [number] * 9) for number in range(3)])[1].tolist()
    [127, 127, 127]
    """
    paths: list[list[bytes]] = []
    for tokens in beginnings:
        path: list[bytes] = []
        for stop in range(BLOCK, len(tokens) + 1, BLOCK):
            block = np.ascontiguousarray(tokens[stop - BLOCK : stop], dtype=np.int64).tobytes()
            path.append(digest(*path[-1:], block))
        paths.append(path)
    counts = Counter(key for path in paths for key in path)
    least = max(2.0, COMMON * len(paths))
    depths = [sum(counts[key] >= least for key in path) for path in paths]
    numbers: dict[bytes, int] = {}
    families = [
        numbers.setdefault(path[depth - 1], len(numbers) + 1) if depth else 0
        for path, depth in zip(paths, depths, strict=True)
    ]
    return np.array(families, dtype=np.int64), np.array(
        [max(depth * BLOCK - 1, 0) for depth in depths], dtype=np.int64
    )
