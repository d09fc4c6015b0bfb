"""The tokens of one group: the prompt once, then one segment per response, with each token's weight in the loss."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, TypedDict, cast

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.options import LossAggregation

IGNORE = -100
"""The label of a token that is not trained."""


class GroupRow(TypedDict):
    """One group, or a part of one, in shared-prefix form: a row of a prepared dataset.

    The tokens are the first P-1 of the shared prompt's P tokens, then one segment per response. A segment starts with
    the last prompt token p_P, so that ordinary next-token labels work inside it. Where nothing is shared,
    `prefix_length` is 0 and every segment is a complete pair.
    """

    input_ids: list[int]
    """T token ids."""
    labels: list[int]
    """T labels: the token's own id where it is trained, else -100. Each is predicted from the token before it."""
    loss_weights: list[float]
    """T coefficients c of the labels in the loss; 0 where the token is not trained."""
    prefix_length: int
    """P-1, the number of tokens before the first segment."""
    segment_lengths: list[int]
    """Tokens of each segment; they sum to T - prefix_length."""
    segment_units: list[float]
    """Each response's share of the units. The step's loss is divided by the sum of the units."""


def shared_length(pairs: Sequence[Pair]) -> int:
    """Return P, the length of the pairs' longest common token prefix. It ends before the first trained token of any.

    Example:

    >>> shared_length([Pair([5, 6, 7], [False, False, True]), Pair([5, 6, 8, 9], [False, False, True, True])])
    2
    """
    untrained = [list(pair.input_ids)[: [*pair.trained, True].index(True)] for pair in pairs]
    least, most = min(untrained), max(untrained)  # in dictionary order, so what these two share, all share
    differing = (place for place, (one, other) in enumerate(zip(least, most, strict=False)) if one != other)
    return next(differing, len(least))


def build_group_row(
    pairs: Sequence[Pair],
    aggregation: LossAggregation = "token",
    weights: Sequence[float] | None = None,
    pool_mean_length: float | None = None,
    pool_mean_weight: float | None = None,
) -> GroupRow:
    """Lay out one group and set the coefficients c and the units of its loss (`docs/loss.md`).

    w_j is the weight of response j and L_j its number of trained tokens. M and W are the mean trained length and the
    mean weight of the prompt's complete pool:

    * `token`: c = w_j, units w_j·L_j;
    * `prompt`: c = w_j / (M·K·W), units 1 / K;
    * `response`: c = w_j / L_j, units w_j.

    Args:
        pairs: the K encoded pairs of the group, each with at least one trained token.
        aggregation: what has one vote in the mean: each `token`, `prompt` or `response`.
        weights: K weights, at least 0 and not all 0; 1 each by default.
        pool_mean_length: M in tokens; by default the mean over `pairs`.
        pool_mean_weight: W; by default the mean over `pairs`.

    Example:

    >>> row = build_group_row([Pair([5, 6, 7], [False, False, True]), Pair([5, 6, 8], [False, False, True])])
    >>> row["input_ids"], row["prefix_length"], row["segment_lengths"]
    ([5, 6, 7, 6, 8], 1, [2, 2])
    """
    # The first token of a pair cannot be trained: no token before it predicts it.
    pairs = [Pair(pair.input_ids, [False, *pair.trained[1:]]) for pair in pairs]
    lengths = [pair.trained_length for pair in pairs]
    if min(lengths) == 0:
        raise ValueError("A response without trained tokens cannot be laid out: drop it before.")
    weights = [1.0] * len(pairs) if weights is None else list(weights)
    total = sum(weights)
    if len(weights) != len(pairs) or min(weights) < 0 or total <= 0:
        raise ValueError(f"weights={weights} must be {len(pairs)} numbers, at least 0 and not all 0.")

    if aggregation == "token":
        coefficients = weights
        units = [weight * length for weight, length in zip(weights, lengths, strict=True)]
    elif aggregation == "prompt":
        mean_length = sum(lengths) / len(lengths) if pool_mean_length is None else pool_mean_length
        mean_weight = total / len(pairs) if pool_mean_weight is None else pool_mean_weight
        coefficients = [weight / (mean_length * len(pairs) * mean_weight) for weight in weights]
        units = [1 / len(pairs)] * len(pairs)
    elif aggregation == "response":
        coefficients = [weight / length for weight, length in zip(weights, lengths, strict=True)]
        units = weights
    else:
        raise ValueError(f"loss_aggregation={aggregation!r} is unknown: choose one of token, prompt, response.")

    start = max(shared_length(pairs) - 1, 0)
    row = GroupRow(
        input_ids=list(pairs[0].input_ids[:start]),
        labels=[IGNORE] * start,
        loss_weights=[0.0] * start,
        prefix_length=start,
        segment_lengths=[len(pair.input_ids) - start for pair in pairs],
        segment_units=units,
    )
    for pair, coefficient in zip(pairs, coefficients, strict=True):
        for token, trained in zip(pair.input_ids[start:], pair.trained[start:], strict=True):
            row["input_ids"].append(token)
            row["labels"].append(token if trained else IGNORE)
            row["loss_weights"].append(coefficient if trained else 0.0)
    return row


def segment_runs(row: GroupRow) -> list[slice]:
    """Return where each segment lies in the columns of tokens."""
    edges = list(accumulate(row["segment_lengths"], initial=row["prefix_length"]))
    return [slice(start, stop) for start, stop in pairwise(edges)]


def take_segments(row: GroupRow, chosen: Sequence[int]) -> GroupRow:
    """Return the part of a group with the prompt and the `chosen` segments, and their share of the units."""
    runs, prefix = segment_runs(row), row["prefix_length"]
    return _cut(row, [slice(prefix), *(runs[index] for index in chosen)], prefix, chosen)


def expand(row: GroupRow) -> list[GroupRow]:
    """Return the pairs of a group, each with its own copy of the prompt: rows of one segment and no shared prefix."""
    prompt = slice(row["prefix_length"])
    return [_cut(row, [prompt, run], 0, [index]) for index, run in enumerate(segment_runs(row))]


def unshare(row: GroupRow) -> GroupRow:
    """Return the group as one row of complete pairs. Each pair is one segment; there is no shared prefix."""
    runs = [run for segment in segment_runs(row) for run in (slice(row["prefix_length"]), segment)]
    return _cut(row, runs, 0, range(len(row["segment_lengths"])))


def _cut(row: GroupRow, runs: Sequence[slice], prefix: int, chosen: Sequence[int]) -> GroupRow:
    """Return a row of the tokens in `runs`: those of the `chosen` segments, with the prompt once or in each."""
    copied = row["prefix_length"] - prefix
    return GroupRow(
        input_ids=[token for run in runs for token in row["input_ids"][run]],
        labels=[label for run in runs for label in row["labels"][run]],
        loss_weights=[weight for run in runs for weight in row["loss_weights"][run]],
        prefix_length=prefix,
        segment_lengths=[row["segment_lengths"][index] + copied for index in chosen],
        segment_units=[row["segment_units"][index] for index in chosen],
    )


def split_group(row: GroupRow, row_length: int) -> list[GroupRow]:
    """Split a group into rows of at most `row_length` tokens, each with the prompt.

    Best-fit decreasing keeps the number of rows small.
    """
    if len(row["input_ids"]) <= row_length:
        return [row]
    room = row_length - row["prefix_length"]
    if max(row["segment_lengths"]) > room:
        longest = row["prefix_length"] + max(row["segment_lengths"])
        raise ValueError(f"A pair of {longest} tokens does not fit row_length={row_length}: raise row_length.")
    return [take_segments(row, sorted(chosen)) for chosen in best_fit_decreasing(row["segment_lengths"], room)]


def best_fit_decreasing(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Pack items into bins of size `room`: the longest first, each into the fullest bin that has space for it.

    An item longer than `room` gets a bin of its own.

    Example:

    >>> best_fit_decreasing([4, 3, 2, 1], 5)
    [[0, 3], [1, 2]]
    """
    bins: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        best = min((bin for bin in range(len(bins)) if left[bin] >= lengths[index]), key=left.__getitem__, default=-1)
        if best == -1:
            bins.append([])
            left.append(room)
        bins[best].append(index)
        left[best] -= lengths[index]
    return bins


def as_group_row(example: dict[str, Any]) -> GroupRow:
    """Return the `GroupRow` in a dataset row, which may have other columns as well."""
    missing = [name for name in GroupRow.__annotations__ if name not in example]
    if missing:
        raise ValueError(
            f"A row without {', '.join(missing)} is not a prepared group. Train with MultiResponseSFTTrainer, or in "
            "Axolotl with a `type: mrt_plugin.axolotl.<selector>` dataset."
        )
    return cast(GroupRow, {name: example[name] for name in GroupRow.__annotations__})
