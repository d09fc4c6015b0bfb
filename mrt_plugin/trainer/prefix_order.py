"""`group_by_prefix`: put groups with a long common beginning into the same micro-batch or packed row."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from mrt_plugin.layout.beginnings import BLOCK

_Part = tuple[int, list[int]]
"""The tokens of some rows as one tree, with its path from the root, and the rows."""

Pack = Callable[[np.ndarray, int], Sequence[Sequence[int]]]
"""Distributes items of given sizes, [n] int32, over bins of a capacity: returns the items of each bin."""

ROOT = -1


class PrefixTree:
    """The rows of a dataset by their common beginnings.

    Args:
        paths: for each row the beginnings that it shares with others (`layout.beginnings.shared_paths`).

    Example:

    >>> tree = PrefixTree([np.array(path) for path in ([4], [4], [7], [7], [])])
    >>> sorted(map(sorted, tree.batches(2, np.random.default_rng(0))))
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, paths: Sequence[np.ndarray]) -> None:
        counts = np.bincount(np.concatenate([*paths, np.zeros(0, dtype=np.int64)]))
        self._above: dict[int, tuple[int, int]] = {}
        """Of each node: the tokens of its beginning, which its rows share, and the node above it."""
        self._home: list[int] = []
        for path in paths:
            above = ROOT
            # Of beginnings that the same rows share, only the longest is a node.
            for place in np.flatnonzero(np.diff(counts[path], append=0)).tolist():
                node = int(path[place])
                self._above[node] = ((place + 1) * BLOCK - 1, above)
                above = node
            self._home.append(above)
        self._deepest_first = sorted(self._above, key=lambda node: -self._above[node][0])

    def __len__(self) -> int:
        return len(self._home)

    def batches(self, size: int, rng: np.random.Generator) -> list[list[int]]:
        """Return all rows in batches of `size`, the last one maybe shorter.

        The rows of a beginning are shuffled and cut into batches. What is left over joins the rows of the next
        shorter beginning, and in the end rows that share nothing. The batches are then shuffled. If no row shares
        anything, or all share the same, this is an ordinary shuffle.
        """
        complete: list[list[int]] = []

        def cut(parts: list[_Part], depth: int) -> list[_Part]:
            rows = [row for _, members in parts for row in members]
            whole = len(rows) - len(rows) % size
            complete.extend(rows[start : start + size] for start in range(0, whole, size))
            return [(0, rows[whole:])] if whole < len(rows) else []

        rest = self._join([(0, [row]) for row in range(len(self))], cut, rng)
        return [complete[place] for place in rng.permutation(len(complete))] + [rows for _, rows in rest]

    def bins(self, sizes: np.ndarray, capacity: int, rng: np.random.Generator, pack: Pack) -> list[list[int]]:
        """Return rows of given `sizes` in shuffled bins. The tree of a bin's rows has at most `capacity` tokens.

        Rows of one beginning that fit a bin stay together. Otherwise `pack` spreads them over bins. Rows beyond those
        of the tree are fillers, which share nothing.
        """

        def join(parts: list[_Part], depth: int) -> list[_Part]:
            lengths = np.array([tokens - depth for tokens, _ in parts], dtype=np.int32)
            together = lengths.sum() <= capacity - depth
            chosen = [range(len(parts))] if together else pack(lengths, capacity - depth)
            return [
                (depth + int(lengths[list(places)].sum()), [row for place in places for row in parts[place][1]])
                for places in chosen
            ]

        packed = self._join([(int(size), [row]) for row, size in enumerate(sizes)], join, rng)
        return [packed[place][1] for place in rng.permutation(len(packed))]

    def _join(
        self, parts: list[_Part], join: Callable[[list[_Part], int], list[_Part]], rng: np.random.Generator
    ) -> list[_Part]:
        """Join the parts of each beginning, the longest beginning first, and return the parts left at the root.

        `join` takes the shuffled parts of a node and its depth in tokens, and returns those that the node above gets.
        """
        waiting: defaultdict[int, list[_Part]] = defaultdict(list)
        for row, part in enumerate(parts):
            waiting[self._home[row] if row < len(self) else ROOT].append(part)
        for node in self._deepest_first:
            depth, above = self._above[node]
            waiting[above] += join(_shuffled(waiting.pop(node, []), rng), depth)
        return join(_shuffled(waiting[ROOT], rng), 0)


def _shuffled(parts: list[_Part], rng: np.random.Generator) -> list[_Part]:
    return [parts[place] for place in rng.permutation(len(parts))]


class PrefixSampler(Sampler[int]):
    """Yields the rows of each epoch so that its micro-batches of `size` rows are those of `PrefixTree.batches`.

    The order depends on the seed and the epoch alone. Rows beyond those of the tree are fillers, and come last.

    Args:
        tree: the rows.
        count: the number of rows with fillers.
        size: the rows of a micro-batch of one process.
        seed: of the order.
        epoch: returns the epoch that begins.
    """

    def __init__(self, tree: PrefixTree, count: int, size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._tree, self._count, self._size, self._seed, self._epoch = tree, count, size, seed, epoch

    def __iter__(self) -> Iterator[int]:
        batches = self._tree.batches(self._size, np.random.default_rng([self._seed, self._epoch()]))
        yield from (row for batch in batches for row in batch)
        yield from range(len(self._tree), self._count)

    def __len__(self) -> int:
        return self._count
