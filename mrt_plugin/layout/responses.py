"""Which tokens of a batch each response trains, for objectives that compare the responses of a group."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from mrt_plugin.layout.group_row import GroupRow, count_responses, sequences_of
from mrt_plugin.layout.tree import Tree

Place = tuple[int, int]
"""A sequence of a batch: the number of its group, and its place in the group."""


@dataclass
class Responses:
    """The N responses of a batch's groups, and the I tokens that they train.

    A token that several responses train is there once for each of them, so I may exceed the tokens of the rows.
    """

    trained_places: torch.Tensor
    """[I] int64: the index in the flattened rows [R · T] that predicts the token."""
    trained_by: torch.Tensor
    """[I] int64: the response that trains it."""
    response_groups: torch.Tensor
    """[N] int64, ascending from 0: the group of a response."""
    response_scores: torch.Tensor
    """[N] float64; NaN where there is none."""
    response_references: torch.Tensor
    """[N] float64: log-probability under the reference model; NaN where it is not known."""

    @classmethod
    def from_batch(cls, batch: dict[str, Any]) -> "Responses":
        """Return the responses in a collated batch. Other keys are ignored."""
        return cls(**{item.name: batch[item.name] for item in fields(cls)})

    def to_batch(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @property
    def lengths(self) -> torch.Tensor:
        """[N] int64: the trained tokens of a response, over all its sequences."""
        return torch.bincount(self.trained_by, minlength=len(self.response_groups))

    def log_probabilities(self, nll: torch.Tensor) -> torch.Tensor:
        """Return the summed log-probability of each response, [N], from the NLL [R, T] of the rows' labels."""
        picked = -nll.flatten()[self.trained_places]
        return picked.new_zeros(len(self.response_groups)).index_add(0, self.trained_by, picked)


def find_responses(groups: Sequence[GroupRow], rows: Sequence[tuple[Tree, Sequence[Place]]], width: int) -> Responses:
    """Return the responses of a batch.

    Args:
        groups: the groups of the batch. Fillers, which train nothing, have no responses.
        rows: for each row its tree, and the sequences of the tree in its order.
        width: tokens of a padded row.
    """
    counts = [count_responses(group) if any(group["segment_units"]) else 0 for group in groups]
    first = np.cumsum([0, *counts])
    scores, references = np.full(first[-1], np.nan), np.full(first[-1], np.nan)
    for number, group in enumerate(groups):
        if not counts[number]:
            continue
        owner = first[number] + np.array(group["segment_responses"])
        if "segment_scores" in group:
            scores[owner] = group["segment_scores"]
        if "segment_references" in group:
            references[first[number] : first[number + 1]] = 0.0
            np.add.at(references, owner, group["segment_references"])
    places, by = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    sequences = [sequences_of(group) for group in groups]
    for row, (tree, members) in enumerate(rows):
        for path, (number, place) in zip(tree.paths, members, strict=True):
            if not counts[number]:
                continue
            trained = np.flatnonzero(sequences[number][place].trained[1:])
            places.append(row * width + path[trained])
            by.append(np.full(len(trained), first[number] + groups[number]["segment_responses"][place]))
    # Groups without responses have no number of their own.
    owners = np.repeat(np.cumsum(np.array(counts) > 0) - 1, counts)
    return Responses(
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.concatenate(by)),
        torch.from_numpy(owners.astype(np.int64)),
        torch.from_numpy(scores),
        torch.from_numpy(references),
    )
