"""Group rows and the collator: the same pairs in both layouts, and units that survive splitting and packing."""

from collections import Counter

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
    shared_length,
    split_group,
)
from mrt_plugin.layout.rows import Rows

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
    assert shared_length(pairs) == 2
    row = build_group_row(pairs)
    assert row["input_ids"] == [1, 2, 9, 4, 2, 9, 5]
    assert row["labels"] == [IGNORE, IGNORE, 9, 4, IGNORE, 9, 5]


def test_a_prompt_that_differs_is_shared_as_far_as_it_goes():
    """A merge across the prompt's end, or a template that looks ahead, gives pairs that part before the response."""
    pairs = [Pair([1, 2, 3, 9], [False, False, False, True]), Pair([1, 2, 4, 9], [False, False, False, True])]
    assert shared_length(pairs) == 2
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


def test_padding_to_a_multiple():
    row = build_group_row([Pair([1, 2, 5], [False, False, True])])
    batch = GroupedResponseCollator(TOKENIZER, pad_to_multiple_of=8)([row])
    assert batch["input_ids"].shape == (1, 8)
    assert torch.equal(batch["ends"][0] > 0, torch.arange(8) < 3)
