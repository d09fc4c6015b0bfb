"""`redraw: epoch`: another random K of the pool for every epoch."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerState

from mrt_plugin.groups.keys import digest
from mrt_plugin.layout.group_row import GroupRow, as_group_row, segment_starts, take_segments
from mrt_plugin.options import LossAggregation


def draw_segments(row: GroupRow, k: int, *, seed: int, epoch: int) -> list[int]:
    """K of the row's segments, uniformly without replacement: those with the smallest hashes.

    A hash is of (seed, epoch, the prompt's tokens, the response's tokens, how often these came before), so the draw
    depends on neither the row's place, the order of the pool, the worker nor the process.

    Returns:
        Indices, rising; all of them if there are at most K.
    """
    count = len(row["segment_lengths"])
    if count <= k:
        return list(range(count))
    tokens = np.asarray(row["input_ids"], dtype=np.int64)
    prompt = tokens[: row["prefix_length"]].tobytes()
    seen: dict[bytes, int] = {}
    keys = []
    for start, length in zip(segment_starts(row), row["segment_lengths"], strict=True):
        text = tokens[start : start + length].tobytes()
        repeat = seen[text] = seen.get(text, -1) + 1
        keys.append(digest(b"redraw", str(seed).encode(), str(epoch).encode(), prompt, text, str(repeat).encode()))
    return sorted(sorted(range(count), key=keys.__getitem__)[:k])


def draw_group(row: GroupRow, k: int, *, seed: int, epoch: int, aggregation: LossAggregation) -> GroupRow:
    """The row with K of its segments, and the loss coefficients that a group of these K has.

    Under `prompt` a group's units are 1 in all, so the coefficients of the K grow to what they would be if the others
    had never been there; M, the mean length over the whole pool, is unchanged. Under `token` and `response` each
    response's coefficients are its own.
    """
    chosen = draw_segments(row, k, seed=seed, epoch=epoch)
    if len(chosen) == len(row["segment_lengths"]):
        return row
    drawn = take_segments(row, chosen)
    kept = sum(drawn["segment_units"])
    if aggregation == "prompt" and kept > 0:
        scale = sum(row["segment_units"]) / kept
        drawn["segment_units"] = [units * scale for units in drawn["segment_units"]]
        drawn["loss_weights"] = [weight * scale for weight in drawn["loss_weights"]]
    return drawn


class Redraw(TrainerCallback):
    """What to draw, and for which epoch; as a callback it learns of every epoch that begins.

    The epoch is in shared memory: workers that outlive an epoch see the next one. A run resumed in the middle of an
    epoch draws for that epoch, since the trainer's state says where it is. (accelerate hands `set_epoch` to a dataset
    only where no sampler takes it, so it cannot be relied on here.)

    Args:
        k: responses per epoch and group.
        seed: of the draws.
        aggregation: `loss_aggregation` of the run.
    """

    def __init__(self, *, k: int, seed: int, aggregation: LossAggregation) -> None:
        self.k, self.seed, self.aggregation = k, seed, aggregation
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Draw for this epoch from now on. At its begin `state.epoch` is whole, or where a resumed run left it."""
        self.epoch.fill_(int((state.epoch or 0) + 1e-6))

    def __call__(self, row: GroupRow) -> GroupRow:
        """The row as the current epoch sees it."""
        return draw_group(row, self.k, seed=self.seed, epoch=int(self.epoch), aggregation=self.aggregation)


class RedrawnGroups(torch.utils.data.Dataset[dict[str, Any]]):
    """Prepared rows of whole pools, of which every epoch sees K segments each.

    The number of rows never changes, and with it neither the steps of an epoch nor the scheduler.
    """

    def __init__(self, rows: Dataset, redraw: Redraw) -> None:
        self.rows, self.redraw = rows, redraw

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.redraw(as_group_row(self.rows[index])))

    def sample(self, count: int) -> Dataset:
        """The first rows as the current epoch sees them."""
        rows = [self[index] for index in range(min(count, len(self)))]
        columns = {name: [row[name] for row in rows] for name in GroupRow.__annotations__}
        return Dataset.from_dict(columns, features=self.rows.select_columns(list(columns)).features)
