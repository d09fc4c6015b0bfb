"""The tokens of one group: the sequences of its responses, each without what it takes from the sequence before it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.options import LossAggregation

IGNORE = -100
"""The label of a token that is not trained."""


@dataclass(frozen=True)
class TokenSequence:
    """One sequence of L tokens: a prompt with a response, or with the turns of one up to a trained turn."""

    input_ids: np.ndarray
    """[L] int64."""
    trained: np.ndarray
    """[L] bool: whether the token is predicted in training, from the token before it. False for the first."""
    loss_weights: np.ndarray
    """[L] float64: the coefficient c of each token in the loss."""
    units: float = 0.0
    """The sequence's share of the units (`docs/loss.md`)."""
    score: float | None = None
    """The score of its response, NaN if it has none; None if the row has no scores."""
    reference: float | None = None
    """Its share of the response's log-probability under a reference model; None if the row has none."""


class GroupRow(TypedDict):
    """One group, or a part of one: a row of a prepared dataset.

    A response has one sequence or, if its turns are trained in different contexts, several. Each of the S sequences
    takes tokens from the beginning of the one before it in the row, and stores its other tokens. With one sequence per
    response, these are the P tokens of the shared prompt with the first response, then p_P and the response for each
    further one. The last prompt token p_P is stored again because it predicts the first trained token.
    """

    input_ids: list[int]
    """T token ids."""
    labels: list[int]
    """T labels: the token's own id where it is trained, else -100. Each is predicted from the token before it."""
    loss_weights: list[float]
    """T coefficients c of the labels in the loss; 0 where the token is not trained."""
    shared_lengths: list[int]
    """S numbers of tokens that a sequence takes from the one before it, which it does not train; 0 for the first."""
    segment_lengths: list[int]
    """S numbers of tokens that a sequence stores; they sum to T."""
    segment_units: list[float]
    """S shares of the units. The step's loss is divided by the sum of the units."""
    segment_responses: list[int]
    """S numbers of the response that a sequence belongs to, ascending from 0."""
    segment_scores: NotRequired[list[float]]
    """S scores of the response that a sequence belongs to; NaN if it has none. For objectives that rank responses."""
    segment_references: NotRequired[list[float]]
    """S shares of the log-probability of the response under a reference model: its sequences sum to it."""


COLUMNS = tuple(name for name in GroupRow.__annotations__ if name in GroupRow.__required_keys__)
"""Columns of every prepared dataset."""

SCORES, REFERENCES = OPTIONAL = ("segment_scores", "segment_references")
"""Columns of a dataset prepared for an objective that ranks responses."""


def build_group_row(
    responses: Sequence[Pair | Sequence[Pair]],
    aggregation: LossAggregation = "token",
    weights: Sequence[float] | None = None,
    pool_mean_length: float | None = None,
    pool_mean_weight: float | None = None,
    scores: Sequence[float] | None = None,
) -> GroupRow:
    """Lay out one group and set the coefficients c and the units of its loss (`docs/loss.md`).

    w_j is the weight of response j and L_j its number of trained tokens, over all its sequences. M and W are the mean
    trained length and the mean weight of the prompt's complete pool:

    * `token`: c = w_j, units w_j·L_j;
    * `prompt`: c = w_j / (M·K·W), units 1 / K;
    * `response`: c = w_j / L_j, units w_j.

    Args:
        responses: for each of the K responses its encoded sequences (a single one may stand alone), each with at least
            one trained token.
        aggregation: what has one vote in the mean: each `token`, `prompt` or `response`.
        weights: K weights, at least 0 and not all 0; 1 each by default.
        pool_mean_length: M in tokens; by default the mean over `responses`.
        pool_mean_weight: W; by default the mean over `responses`.
        scores: K scores, NaN for a response without one. Then the row has `segment_scores`.

    Example:

    >>> row = build_group_row([Pair([5, 6, 7], [False, False, True]), Pair([5, 6, 8], [False, False, True])])
    >>> row["input_ids"], row["shared_lengths"], row["segment_lengths"]
    ([5, 6, 7, 6, 8], [0, 1], [3, 2])
    """
    encoded = [[item] if isinstance(item, Pair) else list(item) for item in responses]
    # The first token of a sequence cannot be trained: no token before it predicts it.
    counts = [[pair.trained_length - bool(pair.trained[0]) for pair in pairs] for pairs in encoded]
    if min(min(own, default=0) for own in counts) == 0:
        raise ValueError("A response without trained tokens cannot be laid out: drop it before.")
    lengths = [sum(own) for own in counts]
    weights = [1.0] * len(encoded) if weights is None else list(weights)
    total = sum(weights)
    if len(weights) != len(encoded) or min(weights) < 0 or total <= 0:
        raise ValueError(f"weights={weights} must be {len(encoded)} numbers, at least 0 and not all 0.")

    given: Sequence[float | None] = [None] * len(encoded) if scores is None else scores
    if aggregation == "token":
        coefficients = weights
        units = [weight * length for weight, length in zip(weights, lengths, strict=True)]
    elif aggregation == "prompt":
        mean_length = sum(lengths) / len(lengths) if pool_mean_length is None else pool_mean_length
        mean_weight = total / len(encoded) if pool_mean_weight is None else pool_mean_weight
        coefficients = [weight / (mean_length * len(encoded) * mean_weight) for weight in weights]
        units = [1 / len(encoded)] * len(encoded)
    elif aggregation == "response":
        coefficients = [weight / length for weight, length in zip(weights, lengths, strict=True)]
        units = weights
    else:
        raise ValueError(f"loss_aggregation={aggregation!r} is unknown: choose one of token, prompt, response.")

    return encode_sequences(
        [
            [
                _sequence(pair, coefficient, share * count / length, score)
                for pair, count in zip(pairs, own, strict=True)
            ]
            for pairs, own, length, coefficient, share, score in zip(
                encoded, counts, lengths, coefficients, units, given, strict=True
            )
        ]
    )


def _sequence(pair: Pair, coefficient: float, units: float, score: float | None) -> TokenSequence:
    trained = np.array(pair.trained, dtype=bool)
    trained[0] = False
    return TokenSequence(np.array(pair.input_ids, dtype=np.int64), trained, coefficient * trained, units, score)


def encode_sequences(responses: Sequence[Sequence[TokenSequence]], *, share: bool = True) -> GroupRow:
    """Store the sequences of each response as a row. Without `share`, each sequence is stored whole."""
    row = GroupRow(
        input_ids=[],
        labels=[],
        loss_weights=[],
        shared_lengths=[],
        segment_lengths=[],
        segment_units=[],
        segment_responses=[],
    )
    before: TokenSequence | None = None
    for number, sequences in enumerate(responses):
        for sequence in sequences:
            shared = 0
            if share and before is not None:
                # The token before the first trained one stays, as it predicts that one.
                shared = min(shared_tokens(before.input_ids, sequence.input_ids), int(sequence.trained.argmax()) - 1)
                shared = max(shared, 0)
            own = sequence.input_ids[shared:]
            row["input_ids"] += own.tolist()
            row["labels"] += np.where(sequence.trained[shared:], own, IGNORE).tolist()
            row["loss_weights"] += sequence.loss_weights[shared:].tolist()
            row["shared_lengths"].append(shared)
            row["segment_lengths"].append(len(own))
            row["segment_units"].append(sequence.units)
            row["segment_responses"].append(number)
            if sequence.score is not None:
                row.setdefault("segment_scores", []).append(sequence.score)
            if sequence.reference is not None:
                row.setdefault("segment_references", []).append(sequence.reference)
            before = sequence
    return row


def shared_tokens(one: np.ndarray, other: np.ndarray) -> int:
    """Return the number of tokens that two sequences have in common together with the token after them.

    If one is the beginning of the other, it is shared completely: nothing follows its last token.
    """
    least = min(len(one), len(other))
    differ = one[:least] != other[:least]
    return max(int(differ.argmax()) - 1, 0) if differ.any() else least


def sequences_of(row: GroupRow) -> list[TokenSequence]:
    """Return the sequences of a row, each complete."""
    ids, labels = np.asarray(row["input_ids"], dtype=np.int64), np.asarray(row["labels"], dtype=np.int64)
    weights = np.asarray(row["loss_weights"], dtype=np.float64)
    found: list[TokenSequence] = []
    start = 0
    nothing: list[None] = [None] * len(row["segment_lengths"])
    scores, references = row.get("segment_scores") or nothing, row.get("segment_references") or nothing
    columns = (row["shared_lengths"], row["segment_lengths"], row["segment_units"], scores, references)
    for shared, own, units, score, reference in zip(*columns, strict=True):
        run = slice(start, start + own)
        start += own
        tokens, trained, weight = ids[run], labels[run] != IGNORE, weights[run]
        if shared:
            tokens = np.concatenate([found[-1].input_ids[:shared], tokens])
            trained = np.concatenate([np.zeros(shared, dtype=bool), trained])
            weight = np.concatenate([np.zeros(shared), weight])
        found.append(TokenSequence(tokens, trained, weight, units, score, reference))
    return found


def responses_of(row: GroupRow) -> list[list[TokenSequence]]:
    """Return the sequences of each response of a row."""
    responses: list[list[TokenSequence]] = [[] for _ in range(count_responses(row))]
    for sequence, number in zip(sequences_of(row), row["segment_responses"], strict=True):
        responses[number].append(sequence)
    return responses


def count_responses(row: GroupRow) -> int:
    """Return the number of responses of a row. One that is split over several rows counts in each."""
    return row["segment_responses"][-1] + 1


def sequence_lengths(row: GroupRow) -> list[int]:
    """Return the number of tokens of each complete sequence."""
    return [shared + own for shared, own in zip(row["shared_lengths"], row["segment_lengths"], strict=True)]


def prompt_length(row: GroupRow) -> int:
    """Return the number of tokens that all sequences share, up to the one that predicts the first trained token."""
    first = next(place for place, label in enumerate(row["labels"]) if label != IGNORE)
    return min([first - 1, *row["shared_lengths"][1:]])


def take_responses(row: GroupRow, chosen: Sequence[int]) -> GroupRow:
    """Return the `chosen` responses of a row, in that order, with their share of the units."""
    responses = responses_of(row)
    return encode_sequences([responses[index] for index in chosen])


def expand(row: GroupRow) -> list[GroupRow]:
    """Return each sequence of a row as a row of its own."""
    return [encode_sequences([[sequence]]) for sequence in sequences_of(row)]


def unshare(row: GroupRow) -> GroupRow:
    """Return the row with every sequence stored whole."""
    return encode_sequences(responses_of(row), share=False)


def split_group(row: GroupRow, row_length: int) -> list[GroupRow]:
    """Split a group into rows of at most `row_length` tokens, each with the prompt.

    A response stays whole if it fits a row, else its sequences are spread over several. Best-fit decreasing keeps the
    number of rows small. Sequences that are stored whole stay so.
    """
    if len(row["input_ids"]) <= row_length:
        return [row]
    lengths, shared, owner = sequence_lengths(row), row["shared_lengths"], row["segment_responses"]
    if max(lengths) > row_length:
        raise ValueError(f"A pair of {max(lengths)} tokens does not fit row_length={row_length}: raise row_length.")
    blocks: list[list[int]] = []
    sizes: list[int] = []  # of each block, as a row of its own
    for place, length in enumerate(lengths):
        together = sizes[-1] + length - shared[place] if place and owner[place] == owner[place - 1] else row_length + 1
        if together <= row_length:
            blocks[-1].append(place)
            sizes[-1] = together
        else:
            blocks.append([place])
            sizes.append(length)
    prompt = min(shared[1:])  # any two sequences have at least these tokens in common
    sequences, parts = sequences_of(row), []
    for chosen in best_fit_decreasing([size - prompt for size in sizes], row_length - prompt):
        places = [place for block in sorted(chosen) for place in blocks[block]]
        members = groupby(places, key=owner.__getitem__)
        responses = [[sequences[place] for place in own] for _, own in members]
        parts.append(encode_sequences(responses, share=any(shared)))
    return parts


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
    refuse_old_rows(example)
    missing = [name for name in COLUMNS if name not in example]
    if missing:
        raise ValueError(
            f"A row without {', '.join(missing)} is not a prepared group. Train with MultiResponseSFTTrainer, or in "
            "Axolotl with a `type: mrt_plugin.axolotl.<selector>` dataset."
        )
    present = [name for name in OPTIONAL if example.get(name) is not None]
    return cast(GroupRow, {name: example[name] for name in (*COLUMNS, *present)})


def refuse_old_rows(columns: Collection[str]) -> None:
    """Raise ValueError for rows in the form of earlier versions, which had a column `prefix_length`."""
    if "prefix_length" in columns and "shared_lengths" not in columns:
        raise ValueError(
            "These rows were prepared by an earlier version of mrt-plugin (column prefix_length). Prepare the groups "
            "again: give the trainer the groups, or call prepare_groups."
        )
