"""The attention plan of one batch: which slice of queries attends to which slice of keys.

Every run of tokens attends causally to itself, and all descendants of a run attend to all of it. In depth-first order
the descendants are consecutive. This covers the rule of `mrt_plugin.attention.masks` without a mask. No key is copied.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from mrt_plugin.layout.rows import Rows

WHOLE = 160
"""The most tokens of a run that form one causal square; longer runs are split in half."""


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of a row that the same tokens see, and that lie on the same paths of the tree."""

    row: int
    start: int
    """Index of its first token in the row."""
    length: int
    end: int
    """Index in the row after the run's last descendant, or after the run itself if it has none."""
    position: int
    """Position of its first token."""
    parent: int
    """Index of the run that it continues, in the list of runs; -1 for the first run of a tree."""

    @property
    def stop(self) -> int:
        """Index in the row after its last token, where its first descendant starts."""
        return self.start + self.length


FULL, CAUSAL, BAND = 0, 1, 2


class Piece(NamedTuple):
    """A slice of queries and the slice of keys that they attend to."""

    row: int
    query: int
    """Index of the first query in the row."""
    queries: int
    key: int
    """Index of the first key in the row."""
    keys: int
    lead: int
    """Position of the first query minus the position of the first key."""
    kind: int
    """FULL: every query sees every key. CAUSAL: query i sees keys 0 to i. BAND: query i sees key j where
    `0 <= lead + i - j < window`."""

    @property
    def own(self) -> bool:
        """Whether the queries' own keys are among the keys. For each query, True for its first piece only."""
        return self.key <= self.query < self.key + self.keys


def find_runs(rows: Rows) -> list[Run]:
    """Return the runs of a batch in row order, without padding. On an accelerator this takes one transfer."""
    ends, positions = torch.stack([rows.ends, rows.position_ids]).cpu().numpy()
    changed = np.ones_like(ends, dtype=bool)
    changed[:, 1:] = ends[:, 1:] != ends[:, :-1]
    runs: list[Run] = []
    for row, starts in enumerate(changed):
        path: list[int] = []  # the runs that have not ended, from the root down
        for start, stop in pairwise([*np.flatnonzero(starts).tolist(), len(starts)]):
            if not ends[row, start]:
                continue
            while path and runs[path[-1]].end <= start:
                path.pop()
            parent = path[-1] if path else -1
            path.append(len(runs))
            runs.append(Run(row, start, stop - start, int(ends[row, start]), int(positions[row, start]), parent))
    return runs


def pieces(runs: list[Run], window: int | None = None) -> list[Piece]:
    """Return the pieces of a batch, for a sliding layer that sees `window` positions, or for full attention.

    Every query is in exactly one piece with its own keys, and these pieces come before all others.
    """
    found = [piece for run in runs for piece in _own(run, window)]
    deepest = [run.position + run.length for run in runs]  # of a run and its descendants
    for number in range(len(runs) - 1, -1, -1):
        if (parent := runs[number].parent) >= 0:
            deepest[parent] = max(deepest[parent], deepest[number])
    for number, run in enumerate(runs):
        if run.stop < run.end and (window is None or deepest[number] - run.position <= window):
            found.append(Piece(run.row, run.stop, run.end - run.stop, run.start, run.length, run.length, FULL))
        above = run.parent
        while window is not None and above >= 0:
            nearest = runs[above].position + runs[above].length - 1
            if run.position - nearest >= window:
                break
            if deepest[above] - runs[above].position > window:
                found.append(_reaching(run, runs[above], window))
            above = runs[above].parent
    return found


def _reaching(run: Run, above: Run, window: int) -> Piece:
    """Return the piece of the run's queries and the keys of an ancestor that their window reaches."""
    skipped = max(0, run.position - window + 1 - above.position)
    lead = run.position - above.position - skipped
    queries = min(run.length, above.length - skipped + window - 1 - lead)
    kind = FULL if run.position + run.length - above.position <= window else BAND
    return Piece(run.row, run.start, queries, above.start + skipped, above.length - skipped, lead, kind)


def _own(run: Run, window: int | None) -> Iterator[Piece]:
    """Yield the pieces of a run's causal attention on itself."""
    if window is None or run.length <= window:
        yield from _causal(run.row, run.start, run.length)
        return
    # Blocks of queries, each with the keys that its window reaches: far less work than length x length.
    block = max(64, window // 2)
    for first in range(0, run.length, block):
        queries = min(block, run.length - first)
        key = max(0, first - window + 1)
        start = run.start
        yield Piece(run.row, start + first, queries, start + key, first + queries - key, first - key, BAND)


def _causal(row: int, start: int, length: int) -> Iterator[Piece]:
    """Split a long run in two halves: each attends to itself, and the second to all of the first.

    PyTorch's CPU kernel also computes the masked half of a causal square, up to 512 keys. Splitting avoids most of
    this work.
    """
    if length <= WHOLE:
        yield Piece(row, start, length, start, length, 0, CAUSAL)
        return
    first = -(-length // 2 // 64) * 64
    yield from _causal(row, start, first)
    yield from _causal(row, start + first, length - first)
    yield Piece(row, start + first, length - first, start, first, first, FULL)
