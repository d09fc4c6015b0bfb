"""Find the beginnings that several groups of a dataset have in common, such as a system text or a document."""

from collections.abc import Iterable

import numpy as np

from mrt_plugin.groups.keys import digest

BLOCK = 64
"""Beginnings are compared in steps of this many tokens."""

COMMON = 0.05
"""The share of all groups that must have a beginning for `common_beginnings` to count it."""


def shared_paths(beginnings: Iterable[np.ndarray], share: float = 0.0) -> list[np.ndarray]:
    """Return the beginnings of whole blocks that each group shares with others, shortest first, as numbers.

    `beginnings` are the tokens that all sequences of a group have in common. Equal numbers stand for equal beginnings;
    the i-th number of a group stands for its first (i + 1)·BLOCK tokens. Listed are beginnings of at least 2 groups
    and of at least this `share` of all groups.

    Example:

    >>> document = np.arange(128)
    >>> [len(path) for path in shared_paths([document, document, document[:70], np.zeros(200)])]
    [2, 2, 1, 0]
    """
    keys, lengths = [], []
    for tokens in beginnings:
        key = b""
        stops = range(BLOCK, len(tokens) + 1, BLOCK)
        for stop in stops:
            key = digest(key, np.ascontiguousarray(tokens[stop - BLOCK : stop], dtype=np.int64).tobytes())
            keys.append(key)
        lengths.append(len(stops))
    hashes = np.frombuffer(b"".join(keys), dtype=np.uint64)
    _, numbers, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    least = max(2.0, share * len(lengths))
    paths = np.split(numbers, np.cumsum(lengths)[:-1]) if lengths else []
    return [path[counts[path] >= least] for path in paths]


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
    paths = shared_paths(beginnings, COMMON)
    numbers: dict[int, int] = {}
    families = [numbers.setdefault(int(path[-1]), len(numbers) + 1) if len(path) else 0 for path in paths]
    shared = [max(len(path) * BLOCK - 1, 0) for path in paths]
    return np.array(families, dtype=np.int64), np.array(shared, dtype=np.int64)
