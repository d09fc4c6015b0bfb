"""`redraw: epoch`: draw K random responses of each pool again in every epoch."""

from itertools import accumulate
from typing import Any, TypedDict

import torch
from datasets import List, Value
from transformers import TrainerCallback, TrainerState

from mrt_plugin.groups.keys import digest
from mrt_plugin.layout.group_row import (
    GroupRow,
    as_group_row,
    count_responses,
    responses_of,
    sequence_lengths,
    take_responses,
    unshare,
)
from mrt_plugin.options import LossAggregation

DRAW = "draw"
"""Column of a prepared dataset that holds a row's `RowDraw`; null if the row draws nothing."""

ROW_FEATURE = {
    "input_ids": List(Value("int32")),
    "labels": List(Value("int32")),
    "loss_weights": List(Value("float64")),
    "shared_lengths": List(Value("int64")),
    "segment_lengths": List(Value("int64")),
    "segment_units": List(Value("float64")),
    "segment_responses": List(Value("int64")),
}

DRAW_FEATURE = {
    **{name: Value("int64") for name in ("k", "seed", "first", "last")},
    "expanded": Value("bool"),
    "pool": ROW_FEATURE,
}


class RowDraw(TypedDict):
    """What a row draws in each epoch: from all responses of its group, those `first` to `last - 1` of K drawn."""

    k: int
    seed: int
    first: int
    last: int
    expanded: bool
    """Whether the row stores every sequence whole."""
    pool: GroupRow


def draw_responses(row: GroupRow, k: int, *, seed: int, epoch: int) -> list[int]:
    """Draw K of the row's responses, uniformly without replacement: those with the smallest hashes of seed, epoch,
    tokens, and number of earlier equal responses."""
    repeats: dict[tuple[bytes, ...], int] = {}
    keys = []
    for sequences in responses_of(row):
        text = tuple(sequence.input_ids.tobytes() for sequence in sequences)
        repeats[text] = repeats.get(text, -1) + 1
        keys.append(digest(b"redraw", *(str(number).encode() for number in (seed, epoch, repeats[text])), *text))
    return sorted(sorted(range(len(keys)), key=keys.__getitem__)[:k])


def draw_group(row: GroupRow, k: int, *, seed: int, epoch: int, aggregation: LossAggregation) -> GroupRow:
    """Return the row with K of its N responses. Under `prompt`, weights times N/K keep its one vote."""
    count = count_responses(row)
    if count <= k:
        return row
    drawn = take_responses(row, draw_responses(row, k, seed=seed, epoch=epoch))
    if aggregation == "prompt":
        drawn["segment_units"] = [units * (count / k) for units in drawn["segment_units"]]
        drawn["loss_weights"] = [weight * (count / k) for weight in drawn["loss_weights"]]
    return drawn


def rows_to_draw(
    pool: GroupRow, k: int, *, seed: int, row_length: int | None = None, expanded: bool = False
) -> list[tuple[GroupRow, RowDraw]]:
    """Return the rows of a group whose K responses are drawn again in each epoch, each with the longest responses
    that any draw can give it, so that packing and step counts plan for these.

    Raises:
        ValueError: if `row_length` has no room for a response. Which row trains it changes with the draw, so its
            sequences are not spread over several rows.
    """
    prompt = 0 if expanded else min(pool["shared_lengths"][1:])
    rows = [take_responses(pool, [index]) for index in range(count_responses(pool))]
    lengths = [sum(sequence_lengths(row)) if expanded else len(row["input_ids"]) - prompt for row in rows]
    longest = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    each = k
    if row_length is not None:
        each = sum(total <= row_length - prompt for total in accumulate(lengths[index] for index in longest[:k]))
        if not each:
            raise ValueError(
                f"A response of {prompt + max(lengths)} tokens with its prompt does not fit row_length={row_length}: "
                "raise row_length."
            )
    found = []
    for first in range(0, k, each):
        last = min(first + each, k)
        row = take_responses(pool, sorted(longest[: last - first]))
        draw = RowDraw(k=k, seed=seed, first=first, last=last, expanded=expanded, pool=pool)
        found.append((unshare(row) if expanded else row, draw))
    return found


def epoch_begun(state: TrainerState) -> int:
    """Return the epoch that begins, or that a resumed run was in. Call it before the first step of the epoch."""
    return int((state.epoch or 0) + 1e-6)


class EpochDraws(TrainerCallback):
    """Reads a row as drawn for the current epoch (`GroupedResponseCollator.read_row`)."""

    def __init__(self, aggregation: LossAggregation) -> None:
        self.aggregation = aggregation
        # In shared memory, so that data workers that outlive an epoch see the next one.
        self.epoch: torch.Tensor = torch.zeros((), dtype=torch.int64)
        self.epoch.share_memory_()  # type: ignore[no-untyped-call]

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.epoch.fill_(epoch_begun(state))

    def __call__(self, example: dict[str, Any]) -> GroupRow:
        """Return the row as drawn for the current epoch. A row without `draw` is returned unchanged."""
        draw: RowDraw | None = example.get(DRAW)
        if draw is None:
            return as_group_row(example)
        epoch = int(self.epoch)
        drawn = draw_group(draw["pool"], draw["k"], seed=draw["seed"], epoch=epoch, aggregation=self.aggregation)
        part = take_responses(drawn, range(draw["first"], draw["last"]))
        return unshare(part) if draw["expanded"] else part
