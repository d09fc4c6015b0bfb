"""The tokens of one group: the prompt once, then one segment per response, with each token's weight in the loss."""

from collections.abc import Sequence
from typing import Any, TypedDict

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
    limit = min(min(len(pair.input_ids) for pair in pairs), *(_first_trained(pair) for pair in pairs))
    first = pairs[0].input_ids
    length = 0
    while length < limit and all(pair.input_ids[length] == first[length] for pair in pairs[1:]):
        length += 1
    return length


def _first_trained(pair: Pair) -> int:
    return list(pair.trained).index(True) if any(pair.trained) else len(pair.input_ids)


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


def segment_starts(row: GroupRow) -> list[int]:
    """Return the index in `input_ids` where each segment begins."""
    starts, position = [], row["prefix_length"]
    for length in row["segment_lengths"]:
        starts.append(position)
        position += length
    return starts


def take_segments(row: GroupRow, chosen: Sequence[int]) -> GroupRow:
    """Return the part of a group with the prompt and the `chosen` segments, and their share of the units."""
    starts, prefix = segment_starts(row), row["prefix_length"]
    part = GroupRow(
        input_ids=row["input_ids"][:prefix],
        labels=row["labels"][:prefix],
        loss_weights=row["loss_weights"][:prefix],
        prefix_length=prefix,
        segment_lengths=[row["segment_lengths"][index] for index in chosen],
        segment_units=[row["segment_units"][index] for index in chosen],
    )
    for index in chosen:
        run = slice(starts[index], starts[index] + row["segment_lengths"][index])
        part["input_ids"] += row["input_ids"][run]
        part["labels"] += row["labels"][run]
        part["loss_weights"] += row["loss_weights"][run]
    return part


def expand(row: GroupRow) -> list[GroupRow]:
    """Return the pairs of a group, each with its own copy of the prompt: rows of one segment and no shared prefix."""
    pairs = []
    for index in range(len(row["segment_lengths"])):
        part = take_segments(row, [index])
        part["segment_lengths"] = [len(part["input_ids"])]
        part["prefix_length"] = 0
        pairs.append(part)
    return pairs


def join_pairs(pairs: Sequence[GroupRow]) -> GroupRow:
    """Join pairs, as `expand` makes them, into one row. Each pair is one segment; there is no shared prefix."""
    return GroupRow(
        input_ids=[token for pair in pairs for token in pair["input_ids"]],
        labels=[label for pair in pairs for label in pair["labels"]],
        loss_weights=[weight for pair in pairs for weight in pair["loss_weights"]],
        prefix_length=0,
        segment_lengths=[length for pair in pairs for length in pair["segment_lengths"]],
        segment_units=[units for pair in pairs for units in pair["segment_units"]],
    )


def split_group(row: GroupRow, row_length: int) -> list[GroupRow]:
    """Split a group into rows of at most `row_length` tokens, each with the prompt.

    Best-fit decreasing keeps the number of rows small.

    Raises:
        ValueError: if the prompt with one response is longer than `row_length`.
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
        fitting = [bin for bin in range(len(bins)) if left[bin] >= lengths[index]]
        if fitting:
            best = min(fitting, key=lambda bin: left[bin])
        else:
            best = len(bins)
            bins.append([])
            left.append(room)
        bins[best].append(index)
        left[best] -= lengths[index]
    return bins


def as_group_row(example: dict[str, Any]) -> GroupRow:
    """Return the `GroupRow` in a dataset row, which may have other columns as well.

    Raises:
        ValueError: if a column is missing.
    """
    missing = [name for name in GroupRow.__annotations__ if name not in example]
    if missing:
        raise ValueError(
            f"A row without {', '.join(missing)} is not a prepared group. Train with MultiResponseSFTTrainer, or in "
            "Axolotl with a `type: mrt_plugin.axolotl.<selector>` dataset."
        )
    return GroupRow(**{name: example[name] for name in GroupRow.__annotations__})  # type: ignore[typeddict-item]
