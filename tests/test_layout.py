"""Group rows and the collator: the same pairs in both layouts, and units that survive splitting and packing."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt_plugin import GroupedResponseCollator
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import (
    IGNORE,
    best_fit_decreasing,
    build_group_row,
    expand,
    prompt_length,
    responses_of,
    sequence_lengths,
    sequences_of,
    split_group,
    take_responses,
    unshare,
)
from mrt_plugin.layout.rows import Rows
from mrt_plugin.layout.tree import build_tree

TOKENIZER = tiny.tokenizer()


@st.composite
def groups(draw):
    """Pairs of one group: a common prompt, then responses that may share their first tokens too."""
    prompt = draw(st.lists(st.integers(5, 30), min_size=1, max_size=12))
    responses = draw(st.lists(st.lists(st.integers(5, 8), min_size=1, max_size=9), min_size=1, max_size=6))
    return [Pair(prompt + response, [False] * len(prompt) + [True] * len(response)) for response in responses]


def votes(rows: Rows) -> dict[tuple, float]:
    """What the rows train: by the tokens that a prediction sees and its label, the sum of the coefficients."""
    found: Counter = Counter()
    for row, ends in enumerate(rows.ends.tolist()):
        for token in torch.nonzero(rows.shift_labels[row] != IGNORE).flatten().tolist():
            seen = [key for key in range(token + 1) if token < ends[key]]
            assert rows.position_ids[row][seen].tolist() == list(range(len(seen)))
            ids = tuple(rows.input_ids[row][seen].tolist())
            found[ids, int(rows.shift_labels[row, token])] += rows.loss_weights[row, token].item()
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(groups(), min_size=1, max_size=4),
    st.sampled_from(["token", "prompt", "response"]),
    st.sampled_from([None, 24, 40]),
    st.booleans(),
    st.sampled_from(["left", "right"]),
)
def test_both_layouts_hold_the_same_pairs(batch, aggregation, row_length, packing, side):
    TOKENIZER.padding_side = side
    prepared = [build_group_row(pairs, aggregation) for pairs in batch]
    made = {}
    for layout in ("expanded", "shared_prefix"):
        collator = GroupedResponseCollator(TOKENIZER, layout=layout, row_length=row_length, packing=packing)
        made[layout] = Rows.from_batch(collator(prepared))
        mask = made[layout].attention_mask
        assert (mask[:, 1:] <= mask[:, :-1]).all(), "padding is on the right, whatever the tokenizer says"
        if row_length:
            assert made[layout].attention_mask.sum(1).max() <= row_length
    assert votes(made["shared_prefix"]) == pytest.approx(votes(made["expanded"]))
    counts = [int(rows.trained_counts.sum()) for rows in made.values()]
    assert counts == [sum(sum(pair.trained) for pairs in batch for pair in pairs)] * 2
    assert made["expanded"].units.sum() == pytest.approx(made["shared_prefix"].units.sum().item())
    tokens = sum(len(pair.input_ids) for pairs in batch for pair in pairs)
    assert int(made["expanded"].attention_mask.sum()) == tokens


@pytest.mark.parametrize(
    ("aggregation", "coefficients", "units"),
    [
        ("token", [1.0, 3.0], [1 * 2, 3 * 4]),
        ("prompt", [1 / (5 * 4), 3 / (5 * 4)], [1 / 2, 1 / 2]),
        ("response", [1 / 2, 3 / 4], [1.0, 3.0]),
    ],
)
def test_the_formulas_of_each_aggregation(aggregation, coefficients, units):
    pairs = [Pair([1, 2, 3, 4], [False, False, True, True]), Pair([1, 2, 5, 6, 7, 8], [False, False] + [True] * 4)]
    row = build_group_row(pairs, aggregation, [1.0, 3.0], pool_mean_length=5.0)
    weights = [weight for weight in row["loss_weights"] if weight]
    assert weights == pytest.approx([coefficients[0]] * 2 + [coefficients[1]] * 4)
    assert row["segment_units"] == pytest.approx(units)


def test_the_shared_prefix_stops_at_the_first_trained_token():
    """Responses that begin alike do not lengthen the prompt, and the last prompt token is repeated."""
    pairs = [Pair([1, 2, 9, 4], [False, False, True, True]), Pair([1, 2, 9, 5], [False, False, True, True])]
    row = build_group_row(pairs)
    assert (row["shared_lengths"], row["segment_lengths"], prompt_length(row)) == ([0, 1], [4, 3], 1)
    assert row["input_ids"] == [1, 2, 9, 4, 2, 9, 5]
    assert row["labels"] == [IGNORE, IGNORE, 9, 4, IGNORE, 9, 5]


def test_a_prompt_that_differs_is_shared_as_far_as_it_goes():
    """A merge across the prompt's end, or a template that looks ahead, gives pairs that part before the response."""
    pairs = [Pair([1, 2, 3, 9], [False, False, False, True]), Pair([1, 2, 4, 9], [False, False, False, True])]
    assert build_group_row(pairs)["shared_lengths"] == [0, 1]
    assert [pair["input_ids"] for pair in expand(build_group_row(pairs))] == [[1, 2, 3, 9], [1, 2, 4, 9]]


def test_the_first_token_of_a_pair_is_never_trained():
    """Nothing comes before it; in a packed row it would be predicted from another pair."""
    row = build_group_row([Pair([7, 8], [True, True])])
    assert row["labels"] == [IGNORE, 8]
    assert row["segment_units"] == [1.0]


def test_a_long_group_is_split_and_keeps_its_units_and_its_prompt():
    pairs = [Pair([1, 2, 3, *range(10, 10 + n)], [False] * 3 + [True] * n) for n in (2, 5, 3, 4)]
    row = build_group_row(pairs, "prompt")
    parts = split_group(row, 11)
    assert len(parts) == 2
    assert all(len(part["input_ids"]) <= 11 for part in parts)
    assert all(part["input_ids"][:2] == [1, 2] for part in parts)
    assert sum(sum(part["segment_units"]) for part in parts) == pytest.approx(1.0)
    told = sorted(tuple(pair["input_ids"]) for part in parts for pair in expand(part))
    assert told == sorted(tuple(pair.input_ids) for pair in pairs)
    with pytest.raises(ValueError, match="raise row_length"):
        split_group(row, 6)


@st.composite
def turns(draw):
    """A group whose responses have one or several sequences, each with its own context and last turn trained."""
    prompt = draw(st.lists(st.integers(5, 30), min_size=1, max_size=8))
    runs = st.lists(st.integers(5, 7), min_size=1, max_size=5)
    responses = []
    for _ in range(draw(st.integers(1, 5))):
        sequences, context = [], prompt
        for _ in range(draw(st.integers(1, 3))):
            said, kept, asked = draw(runs), draw(runs), draw(runs)
            sequences.append(Pair(context + said, [False] * len(context) + [True] * len(said)))
            context = context + (said if draw(st.booleans()) else kept) + asked
        responses.append(sequences)
    return responses


def pairs_in(row) -> list[list[tuple]]:
    """The sequences of each response with what they train, by their values."""
    return [
        [(item.input_ids.tolist(), item.trained.tolist(), item.loss_weights.tolist(), item.units) for item in own]
        for own in responses_of(row)
    ]


@settings(deadline=None, max_examples=100)
@given(turns(), st.data())
def test_what_a_row_stores_is_what_went_in(responses, data):
    weights = [data.draw(st.sampled_from([0.5, 1.0, 3.0])) for _ in responses]
    row = build_group_row(responses, "response", weights)
    whole = pairs_in(row)
    ids = [[(list(pair.input_ids), list(pair.trained)) for pair in own] for own in responses]
    assert [[item[:2] for item in own] for own in whole] == ids
    for own, weight in zip(whole, weights, strict=True):
        assert sum(item[3] for item in own) == pytest.approx(weight)
        assert sum(sum(item[2]) for item in own) == pytest.approx(weight), "one vote over all its sequences"
    assert pairs_in(unshare(row)) == whole
    assert unshare(row)["segment_lengths"] == sequence_lengths(row)
    assert [pairs_in(single)[0] for single in expand(row)] == [[item] for own in whole for item in own]
    chosen = data.draw(st.lists(st.sampled_from(range(len(responses))), unique=True, min_size=1))
    assert pairs_in(take_responses(row, chosen)) == [whole[index] for index in chosen]


@settings(deadline=None, max_examples=100)
@given(turns(), st.sampled_from([0, 3, 10]))
def test_a_row_is_as_long_as_its_tree_but_for_shared_trained_tokens(responses, room):
    row = build_group_row(responses)
    tree = build_tree(sequences_of(row))
    trained = sum(sequence.trained.sum() for sequence in sequences_of(row))
    merged = trained - (tree.shift_labels != IGNORE).sum()  # labels that several sequences have in common
    assert len(tree.input_ids) <= len(row["input_ids"])
    if not merged and all(len(own) == 1 for own in responses):
        assert len(tree.input_ids) == len(row["input_ids"])
    # Split, each part has the length asked for, and together they train what the row trains.
    row_length = max(sequence_lengths(row)) + room
    parts = split_group(row, row_length)
    assert all(len(part["input_ids"]) <= row_length for part in parts)
    found = sorted(pair for part in parts for own in pairs_in(part) for pair in own)
    assert found == sorted(pair for own in pairs_in(row) for pair in own)
    for part in parts:
        numbers = part["segment_responses"]
        assert numbers[0] == 0
        assert all(after - before in (0, 1) for before, after in pairwise(numbers))


def test_a_response_is_split_only_if_it_fits_no_row():
    def response(first, *lengths):
        sequences = [[1, 2, 3, first + place, *range(100, 99 + n)] for place, n in enumerate(lengths)]
        return [Pair(ids, [False] * 3 + [True] * (len(ids) - 3)) for ids in sequences]

    row = build_group_row([response(10, 4, 4), response(30, 5), response(50, 3, 3, 3)])
    # Without the two shared tokens of the prompt, the responses have 10, 6 and 12.
    parts = split_group(row, 2 + 12)
    assert [part["segment_responses"] for part in parts] == [[0, 0, 0], [0, 0], [0]]
    parts = split_group(row, 2 + 9)
    found = sorted((part["segment_lengths"], part["segment_responses"]) for part in parts)
    assert found == [([6, 4], [0, 0]), ([7], [0]), ([7, 4], [0, 1]), ([8], [0])]


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(20, 40))
def test_bins_hold_every_item_once_and_never_overflow(lengths, room):
    bins = best_fit_decreasing(lengths, room)
    assert sorted(index for bin in bins for index in bin) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in bin) <= room for bin in bins)


def test_the_collator_takes_the_lists_of_axolotls_sampler():
    rows = [build_group_row([Pair([1, 2, token], [False, False, True])]) for token in (5, 6, 7)]
    collator = GroupedResponseCollator(TOKENIZER, row_length=8)
    assert collator([rows[:2], rows[2:]])["units"].sum() == 3
    with pytest.raises(ValueError, match="prepared group"):
        collator([{"input_ids": [1, 2]}])
    old = {name: value for name, value in rows[0].items() if name not in ("shared_lengths", "segment_responses")}
    with pytest.raises(ValueError, match=r"earlier version.*Prepare the groups again"):
        collator([{**old, "prefix_length": 1}])


def test_padding_to_a_multiple():
    row = build_group_row([Pair([1, 2, 5], [False, False, True])])
    batch = GroupedResponseCollator(TOKENIZER, pad_to_multiple_of=8)([row])
    assert batch["input_ids"].shape == (1, 8)
    assert torch.equal(batch["ends"][0] > 0, torch.arange(8) < 3)
