"""Distribute sequences over rows of limited length, so that rows share as much as possible."""

from collections.abc import Sequence
from itertools import chain

from mrt_plugin.layout.group_row import TokenSequence, best_fit_decreasing
from mrt_plugin.layout.tree import sort_by_beginning

_Part = tuple[int, list[int]]
"""The tokens of a part of the tree, with its path from the root, and its sequences."""


def fill_rows(
    groups: Sequence[Sequence[TokenSequence]], row_length: int | None, *, packing: bool, share: bool = True
) -> list[list[tuple[int, int]]]:
    """Distribute the sequences of a batch's groups over rows.

    Return for each row its sequences, each as the number of its group and its place in the group. Rows hold several
    groups (without `share`: several sequences) if `packing` is set and rows have a limit.

    Raises:
        ValueError: if one sequence is longer than `row_length`.
    """
    packing = packing and row_length is not None
    places = [[(group, place) for place in range(len(sequences))] for group, sequences in enumerate(groups)]
    rows = []
    for members in [list(chain.from_iterable(places))] if packing else places:
        sequences = [groups[group][place] for group, place in members]
        if share:
            chosen = [list(range(len(members)))] if row_length is None else pack(sequences, row_length)
        elif packing and row_length is not None:
            chosen = best_fit_decreasing([len(sequence.input_ids) for sequence in sequences], row_length)
        else:
            chosen = [[index] for index in range(len(members))]
        rows += [[members[index] for index in row] for row in chosen]
    return rows


def pack(sequences: Sequence[TokenSequence], row_length: int) -> list[list[int]]:
    """Return the sequences of each row, as indices. A row's tree has at most `row_length` tokens.

    A subtree that fits a row stays together. One that does not is split into as few parts as best-fit decreasing
    finds, and each part has the path from the root again.

    Raises:
        ValueError: if one sequence is longer than `row_length`.
    """
    longest = max(len(sequence.input_ids) for sequence in sequences)
    if longest > row_length:
        raise ValueError(f"A pair of {longest} tokens does not fit row_length={row_length}: raise row_length.")
    order, shared = sort_by_beginning(sequences)
    # The nodes of the tree where sequences part, from the leaves up. `open_nodes` holds the path of the last sequence:
    # the depth of each node, and the parts below it with their tokens, counted from the root.
    open_nodes: list[tuple[int, list[_Part]]] = [(0, [])]
    for index, depth in zip(order, [*shared[1:], 0], strict=True):
        part = [(len(sequences[index].input_ids), [index])]
        while open_nodes[-1][0] > depth:
            above, parts = open_nodes.pop()
            part = _join([*parts, *part], above, row_length)
        if open_nodes[-1][0] < depth:
            open_nodes.append((depth, []))
        open_nodes[-1][1].extend(part)
    return [sorted(chosen) for _, chosen in _join(open_nodes[0][1], 0, row_length)]


def _join(parts: list[_Part], depth: int, row_length: int) -> list[_Part]:
    """Join parts that have their first `depth` tokens in common."""
    lengths = [tokens - depth for tokens, _ in parts]
    return [
        (depth + sum(lengths[place] for place in chosen), [index for place in chosen for index in parts[place][1]])
        for chosen in best_fit_decreasing(lengths, row_length - depth)
    ]
