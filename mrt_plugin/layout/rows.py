"""A batch of rows as tensors, the input of a model, an attention backend and the loss."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from mrt_plugin.layout.group_row import IGNORE, GroupRow

PADDING = -1
"""The group and segment id of a padding token."""


@dataclass
class Rows:
    """R rows of T tokens. A token of segment j > 0 sees segment 0 (the prompt) and segment j of its own group.

    A row may hold several groups. In the expanded layout every group is one pair: a single segment 1 and no segment 0.
    """

    input_ids: torch.Tensor
    """[R, T] int64 token ids."""
    position_ids: torch.Tensor
    """[R, T] int64: from 0 in a prompt of P tokens, restarting at P-1 in each of its segments; 0 on padding."""
    group_ids: torch.Tensor
    """[R, T] int64: the number of the group within its row, from 0; -1 on padding."""
    segment_ids: torch.Tensor
    """[R, T] int64: 0 for the shared prompt, from 1 for its responses; -1 on padding."""
    labels: torch.Tensor
    """[R, T] int64: the token's own id where it is trained, else -100. Each is predicted from the token before it."""
    loss_weights: torch.Tensor
    """[R, T] float32: the coefficient c of each label."""
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
        return (self.group_ids != PADDING).long()


def build_rows(
    packed: Sequence[Sequence[GroupRow]], pad_token_id: int, *, pad_to_multiple_of: int | None = None
) -> Rows:
    """Build the tensors of rows. Each row holds the groups in `packed[row]`, padded to the longest row.

    Padding is always on the right, also if the tokenizer's padding side is left. Some families compute windows,
    blocks or temperatures from a token's index in its row.
    """
    width = max(sum(len(group["input_ids"]) for group in groups) for groups in packed)
    if pad_to_multiple_of:
        width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
    shape = (len(packed), width)
    rows = Rows(
        input_ids=torch.full(shape, pad_token_id, dtype=torch.int64),
        position_ids=torch.zeros(shape, dtype=torch.int64),
        group_ids=torch.full(shape, PADDING, dtype=torch.int64),
        segment_ids=torch.full(shape, PADDING, dtype=torch.int64),
        labels=torch.full(shape, IGNORE, dtype=torch.int64),
        loss_weights=torch.zeros(shape, dtype=torch.float32),
        units=torch.zeros(len(packed), dtype=torch.float32),
    )
    for index, groups in enumerate(packed):
        start = 0
        for number, group in enumerate(groups):
            stop = start + len(group["input_ids"])
            prefix = group["prefix_length"]
            rows.input_ids[index, start:stop] = torch.tensor(group["input_ids"])
            rows.labels[index, start:stop] = torch.tensor(group["labels"])
            rows.loss_weights[index, start:stop] = torch.tensor(group["loss_weights"], dtype=torch.float32)
            rows.group_ids[index, start:stop] = number
            rows.segment_ids[index, start : start + prefix] = 0
            rows.position_ids[index, start : start + prefix] = torch.arange(prefix)
            position = start + prefix
            for segment, length in enumerate(group["segment_lengths"], start=1):
                rows.segment_ids[index, position : position + length] = segment
                rows.position_ids[index, position : position + length] = torch.arange(prefix, prefix + length)
                position += length
            rows.units[index] += sum(group["segment_units"])
            start = stop
    return rows
