"""`redraw: epoch`: draw K random responses of each pool anew for every epoch."""

from itertools import accumulate
from typing import Any, TypedDict

import numpy as np
import torch
from datasets import List, Value
from transformers import TrainerCallback, TrainerState

from mrt_plugin.groups.keys import digest
from mrt_plugin.layout.group_row import GroupRow, as_group_row, expand, join_pairs, segment_starts, take_segments
from mrt_plugin.options import LossAggregation

DRAW = "draw"
"""Column of a prepared dataset that holds a row's `Draw`; null if the row draws nothing."""


def draw_segments(row: GroupRow, k: int, *, seed: int, epoch: int) -> list[int]:
    """Draw K of the row's segments, uniformly without replacement: those with the smallest hashes.

    A hash covers the seed, the epoch, the tokens of prompt and response, and the number of earlier equal responses. So
    the draw does not depend on the row's place, the order of the pool, the worker or the process.

    Returns:
        Indices in ascending order; all of them if there are at most K.
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
    """Return the row with K of its segments, and with the loss coefficients of a group of these K.

    Under `prompt` the coefficients and units of N responses are multiplied by N/K, so that the group keeps one vote.
    Their divisors M (mean trained length) and W (mean weight) are means over the whole pool. Under `token` and
    `response` each response keeps its own coefficients.
    """
    chosen = draw_segments(row, k, seed=seed, epoch=epoch)
    count = len(row["segment_lengths"])
    if len(chosen) == count:
        return row
    drawn = take_segments(row, chosen)
    if aggregation == "prompt":
        scale = count / len(chosen)
        drawn["segment_units"] = [units * scale for units in drawn["segment_units"]]
        drawn["loss_weights"] = [weight * scale for weight in drawn["loss_weights"]]
    return drawn


class Draw(TypedDict):
    """Describes what a row of a prepared dataset draws in each epoch. Stored in its column `draw`."""

    k: int
    """Responses of the group per epoch."""
    seed: int
    first: int
    last: int
    """The row trains the responses first..last-1 of the K drawn. These are all K, unless K responses may be too long
    for a row."""
    expanded: bool
    """Whether the row has no shared prefix. Its segments are then whole pairs."""
    pool: GroupRow
    """All responses of the group."""


_TOKENS = {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "loss_weights": List(Value("float64"))}

DRAW_FEATURE = {
    "k": Value("int64"),
    "seed": Value("int64"),
    "first": Value("int64"),
    "last": Value("int64"),
    "expanded": Value("bool"),
    "pool": {
        **_TOKENS,
        "prefix_length": Value("int64"),
        "segment_lengths": List(Value("int64")),
        "segment_units": List(Value("float64")),
    },
}
"""The type of the column `draw`."""


def rows_to_draw(
    pool: GroupRow, k: int, *, seed: int, row_length: int | None = None, expanded: bool = False
) -> list[tuple[GroupRow, Draw]]:
    """Return the rows of a group whose K responses are drawn anew each epoch.

    A row holds the longest responses that any draw can give it. So packing, length limits and step counts, which are
    computed before training, plan for the longest possible draw. If the K longest responses do not fit `row_length`,
    the group gets several rows. Each is for a part of the draw that always fits. The number of rows does not depend on
    the draw.

    Args:
        pool: the group, with more than K responses.
        k: number of responses to draw.
        seed: of the draws.
        row_length: tokens that a row may hold; unlimited by default.
        expanded: build rows without a shared prefix, as `join_pairs` makes them.

    Raises:
        ValueError: if the prompt with one response is longer than `row_length`.
    """
    prefix = pool["prefix_length"]
    lengths = [length + prefix * expanded for length in pool["segment_lengths"]]
    longest = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    each = k
    if row_length is not None:
        room = row_length - prefix * (not expanded)
        each = sum(total <= room for total in accumulate(lengths[index] for index in longest[:k]))
        if not each:
            raise ValueError(
                f"A pair of {prefix + max(pool['segment_lengths'])} tokens does not fit row_length={row_length}: "
                "raise row_length."
            )
    rows = []
    for first in range(0, k, each):
        last = min(first + each, k)
        row = take_segments(pool, sorted(longest[: last - first]))
        draw = Draw(k=k, seed=seed, first=first, last=last, expanded=expanded, pool=pool)
        rows.append((join_pairs(expand(row)) if expanded else row, draw))
    return rows


def epoch_begun(state: TrainerState) -> int:
    """Return the epoch that begins, or that a resumed run was in. Call it before the first step of the epoch."""
    return int((state.epoch or 0) + 1e-6)


class Redraw(TrainerCallback):
    """Reads a row as drawn for the current epoch. As a callback it is notified of every epoch that begins.

    A collator calls it for every row (`GroupedResponseCollator.read_row`), so samplers see an ordinary dataset. The
    epoch is in shared memory, so workers that outlive an epoch see the next one. A run resumed in the middle of an
    epoch uses that epoch's draw, because the trainer's state holds the epoch.

    Args:
        aggregation: `loss_aggregation` of the run.
    """

    def __init__(self, aggregation: LossAggregation) -> None:
        self.aggregation = aggregation
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Set the epoch to draw for."""
        self.epoch.fill_(epoch_begun(state))

    def __call__(self, example: dict[str, Any]) -> GroupRow:
        """Return the row as drawn for the current epoch. A row without `draw` is returned unchanged."""
        draw: Draw | None = example.get(DRAW)
        if draw is None:
            return as_group_row(example)
        epoch = int(self.epoch)
        drawn = draw_group(draw["pool"], draw["k"], seed=draw["seed"], epoch=epoch, aggregation=self.aggregation)
        part = take_segments(drawn, range(draw["first"], draw["last"]))
        return join_pairs(expand(part)) if draw["expanded"] else part
