"""The attention plan of one batch: which slice of queries attends to which slice of keys.

Every run of tokens attends causally to itself, and every group's segments attend to its prompt. This covers the rule
of `mrt_plugin.attention.masks` without a mask. The prompt's keys are read once for all segments and never copied.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import torch

from mrt_plugin.layout.rows import PADDING, Rows

WHOLE = 160
"""The most tokens of a run that form one causal square; longer runs are split in half."""


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of one group and segment."""

    row: int
    start: int
    """Index of its first token in the row."""
    length: int
    group: int
    segment: int
    position: int
    """Position of its first token."""


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
    group, segment, position = torch.stack([rows.group_ids, rows.segment_ids, rows.position_ids]).cpu().numpy()
    changed = np.ones_like(group, dtype=bool)
    changed[:, 1:] = (group[:, 1:] != group[:, :-1]) | (segment[:, 1:] != segment[:, :-1])
    runs = []
    for row, starts in enumerate(changed):
        for start, stop in pairwise([*np.flatnonzero(starts).tolist(), len(starts)]):
            if group[row, start] != PADDING:
                first = (int(ids[row, start]) for ids in (group, segment, position))
                runs.append(Run(row, start, stop - start, *first))
    return runs


def pieces(runs: list[Run], window: int | None = None) -> list[Piece]:
    """Return the pieces of a batch.

    Every query is in exactly one piece with its own keys, and that piece comes before the query's other pieces.

    Args:
        runs: the result of `find_runs`.
        window: number of positions that a sliding layer sees; None for full attention.
    """
    found: list[Piece] = []
    for group in group_runs(runs):
        prompt = group[0] if group[0].segment == 0 else None
        segments = group if prompt is None else group[1:]
        if prompt is not None and len(segments) == 1:
            # One response: it forms one ordinary sequence with the prompt.
            found += _own(prompt.row, prompt.start, prompt.length + segments[0].length, window)
            continue
        for run in group:
            found += _own(run.row, run.start, run.length, window)
        if prompt is not None and segments:
            found += _on_prompt(prompt, segments, window)
    return found


def group_runs(runs: list[Run]) -> Iterator[list[Run]]:
    """Yield the runs of each group, the prompt first where there is one."""
    for _, group in groupby(runs, key=lambda run: (run.row, run.group)):
        yield list(group)


def _own(row: int, start: int, length: int, window: int | None) -> Iterator[Piece]:
    """Yield the pieces of a run's causal attention on itself."""
    if window is None or length <= window:
        yield from _causal(row, start, length)
        return
    # Blocks of queries, each with the keys that its window reaches: far less work than length x length.
    block = max(64, window // 2)
    for first in range(0, length, block):
        queries = min(block, length - first)
        key = max(0, first - window + 1)
        yield Piece(row, start + first, queries, start + key, first + queries - key, first - key, BAND)


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


def _on_prompt(prompt: Run, segments: list[Run], window: int | None) -> Iterator[Piece]:
    """Yield the pieces of all segments' attention on their prompt."""
    first, last = segments[0], segments[-1]
    if window is None or all(run.position + run.length - prompt.position <= window for run in segments):
        queries = last.start + last.length - first.start
        yield Piece(prompt.row, first.start, queries, prompt.start, prompt.length, prompt.length, FULL)
        return
    reach = min(prompt.length, window - 1)
    for run in segments if reach else []:
        key = prompt.start + prompt.length - reach
        yield Piece(prompt.row, run.start, min(run.length, window - 1), key, reach, reach, BAND)
