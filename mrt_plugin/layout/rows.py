"""A batch of rows as tensors, the input of a model, an attention backend and the loss."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from mrt_plugin.layout.group_row import IGNORE, GroupRow, sequences_of
from mrt_plugin.layout.tree import Tree, build_tree


@dataclass
class Rows:
    """R rows of T tokens, each the tree of its sequences (`mrt_plugin.layout.tree.Tree`).

    Query q sees key k where `k <= q < ends[k]`. Padding sees itself only.
    """

    input_ids: torch.Tensor
    """[R, T] int64 token ids."""
    position_ids: torch.Tensor
    """[R, T] int64: the token's place in its sequences, from 0; 0 on padding."""
    ends: torch.Tensor
    """[R, T] int64: the index in the row after the last token that sees this token; 0 on padding."""
    shift_labels: torch.Tensor
    """[R, T] int64: the next token of the token's sequences where it is trained, else -100."""
    loss_weights: torch.Tensor
    """[R, T] float32: the coefficient c of each label, summed over the sequences that train it."""
    trained_counts: torch.Tensor
    """[R, T] int64: the number of sequences that train each label."""
    units: torch.Tensor
    """[R] float32: each row's share of the units. The step's loss is divided by the sum of the units."""

    @classmethod
    def from_batch(cls, batch: dict[str, Any]) -> "Rows":
        """Return the rows in a collated batch. Other keys are ignored."""
        return cls(**{item.name: batch[item.name] for item in fields(cls)})

    def to_batch(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name, in the form that a data loader moves between devices."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @property
    def attention_mask(self) -> torch.Tensor:
        """[R, T] int64: 1 on tokens, 0 on padding."""
        return (self.ends > 0).long()


def build_rows(
    packed: Sequence[Sequence[GroupRow]],
    pad_token_id: int,
    *,
    share: bool = True,
    pad_to_multiple_of: int | None = None,
) -> Rows:
    """Build the tensors of rows. Each row holds the groups in `packed[row]`, with common beginnings once.

    Without `share`, every pair of a row is complete, as in the expanded layout.
    """
    trees = [build_tree([item for group in groups for item in sequences_of(group)], share=share) for groups in packed]
    return stack(trees, pad_token_id, pad_to_multiple_of=pad_to_multiple_of)


def stack(trees: Sequence[Tree], pad_token_id: int, *, pad_to_multiple_of: int | None = None) -> Rows:
    """Stack trees as rows, padded to the longest.

    Padding is always on the right, also if the tokenizer's padding side is left. Some families compute windows,
    blocks or temperatures from a token's index in its row.
    """
    width = max(len(tree.input_ids) for tree in trees)
    if pad_to_multiple_of:
        width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
    fill = {"input_ids": pad_token_id, "shift_labels": IGNORE}
    columns = {}
    for name in ("input_ids", "position_ids", "ends", "shift_labels", "loss_weights", "trained_counts"):
        column = torch.full((len(trees), width), fill.get(name, 0), dtype=torch.int64)
        if name == "loss_weights":
            column = column.float()
        for row, tree in enumerate(trees):
            values = torch.from_numpy(getattr(tree, name))
            column[row, : len(values)] = values
        columns[name] = column
    return Rows(**columns, units=torch.tensor([tree.units for tree in trees], dtype=torch.float32))
