"""Merge token sequences into a tree: a common beginning becomes one run of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mrt_plugin.layout.group_row import IGNORE, TokenSequence, shared_tokens


@dataclass(frozen=True)
class Tree:
    """Sequences merged by common beginnings: T tokens in depth-first order.

    Consecutive tokens with the same `ends` are one run. A token sees the tokens of its own run up to itself, and all
    tokens of the run's ancestors: token k is seen by the tokens k to `ends[k] - 1`.

    A token that several sequences share has the same next token in all of them, so each token has at most one label.
    Where sequences part, the last token that they have in common is therefore repeated in each of them. The last token
    of a sequence that another one continues is not repeated.
    """

    input_ids: np.ndarray
    """[T] int64."""
    position_ids: np.ndarray
    """[T] int64: the token's place in its sequences."""
    ends: np.ndarray
    """[T] int64: the index after the last token that sees this token."""
    shift_labels: np.ndarray
    """[T] int64: the next token where it is trained, else -100."""
    loss_weights: np.ndarray
    """[T] float64: the sum of the coefficients c of the sequences that train this label."""
    trained_counts: np.ndarray
    """[T] int64: the number of sequences that train this label."""
    units: float
    paths: list[np.ndarray]
    """For each sequence, in the order given: the index of each of its tokens, [L]."""


def sort_by_beginning(sequences: Sequence[TokenSequence]) -> tuple[list[int], list[int]]:
    """Return the sorted order of sequences, and how many tokens each shares with the one before it.

    In this order a tree has, of each sequence, the tokens that it does not share with the one before
    (`mrt_plugin.layout.group_row.shared_tokens`).

    Example:

    >>> abc, abd, x = (TokenSequence(np.array(ids), *[np.zeros(3)] * 2) for ids in ([1, 2, 3], [1, 2, 4], [9, 9, 9]))
    >>> sort_by_beginning([abd, x, abc])
    ([2, 0, 1], [0, 1, 0])
    """
    # Big-endian bytes compare as the numbers do.
    keys = [sequence.input_ids.astype(">u4").tobytes() for sequence in sequences]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    pairs = pairwise(sequences[index].input_ids for index in order)
    shared = [0, *(shared_tokens(before, after) for before, after in pairs)]
    return order, shared


def build_tree(sequences: Sequence[TokenSequence], *, share: bool = True) -> Tree:
    """Merge sequences into a tree; without `share`, lay them out one after the other."""
    order, shared = sort_by_beginning(sequences) if share else (list(range(len(sequences))), [0] * len(sequences))
    lengths = [len(sequences[index].input_ids) for index in order]
    total = sum(lengths) - sum(shared)
    input_ids, position_ids, ends = (np.empty(total, dtype=np.int64) for _ in range(3))
    shift_labels = np.full(total, IGNORE, dtype=np.int64)
    loss_weights, trained_counts = np.zeros(total), np.zeros(total, dtype=np.int64)
    paths: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(sequences)
    path = np.empty(max(lengths), dtype=np.int64)  # of the sequence before: the index of its token at each depth
    start = before = 0
    for index, depth, length in zip(order, shared, lengths, strict=True):
        sequence = sequences[index]
        ends[path[depth:before]] = start  # no later sequence has these tokens
        stop = start + length - depth
        path[depth:length] = np.arange(start, stop)
        input_ids[start:stop] = sequence.input_ids[depth:]
        position_ids[start:stop] = np.arange(depth, length)
        paths[index] = path[:length].copy()
        trained = np.flatnonzero(sequence.trained[1:])
        predicting = path[trained]
        shift_labels[predicting] = sequence.input_ids[trained + 1]
        loss_weights[predicting] += sequence.loss_weights[trained + 1]
        trained_counts[predicting] += 1
        start, before = stop, length
    ends[path[:before]] = start
    units = sum(sequence.units for sequence in sequences)
    return Tree(input_ids, position_ids, ends, shift_labels, loss_weights, trained_counts, units, paths)
