"""The tree of a row, its rule and its packing, compared with their definitions."""

import random

import numpy as np
import pytest
import torch
from helpers.trees import deep_rows, depths, random_forest, random_pairs, visible_by_definition
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt_plugin.attention.masks import visible
from mrt_plugin.attention.plan import find_runs, pieces
from mrt_plugin.layout.group_row import TokenSequence, sequence_lengths, sequences_of
from mrt_plugin.layout.packing import pack
from mrt_plugin.layout.rows import build_rows, stack
from mrt_plugin.layout.tree import build_tree


def sequence(ids, trained=None, weight=1.0) -> TokenSequence:
    chosen = np.array([False] + [True] * (len(ids) - 1) if trained is None else trained)
    return TokenSequence(np.array(ids, dtype=np.int64), chosen, weight * chosen, 1.0)


def many(seed, **sizes) -> list[TokenSequence]:
    rng = random.Random(seed)
    return [
        sequence(list(pair.input_ids), list(pair.trained), rng.choice([0.0, 0.5, 2.0]))
        for pair in random_pairs(seed, **sizes)
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8), st.sampled_from([4, 96]))
def test_a_tree_has_every_common_beginning_once(seed, depth, fan_out, vocabulary):
    sequences = many(seed, depth=depth, fan_out=fan_out, vocabulary=vocabulary)
    tree = build_tree(sequences)
    nodes, paths = visible_by_definition([item.input_ids.tolist() for item in sequences])
    assert len(tree.input_ids) == len(nodes)
    index: dict[int, int] = {}
    for path, own in zip(paths, tree.paths, strict=True):
        index.update(zip(path, own.tolist(), strict=True))
    assert sorted(index.values()) == list(range(len(nodes)))
    weights, counts = np.zeros(len(nodes)), np.zeros(len(nodes), dtype=int)
    for item, path in zip(sequences, tree.paths, strict=True):
        assert tree.input_ids[path].tolist() == item.input_ids.tolist()
        assert tree.position_ids[path].tolist() == list(range(len(path)))
        for place in range(1, len(path)):
            if item.trained[place]:
                weights[path[place - 1]] += item.loss_weights[place]
                counts[path[place - 1]] += 1
                assert tree.shift_labels[path[place - 1]] == item.input_ids[place]
    np.testing.assert_allclose(tree.loss_weights, weights)
    assert tree.trained_counts.tolist() == counts.tolist()
    assert ((tree.shift_labels == -100) == (counts == 0)).all()
    assert tree.units == len(sequences)
    # The rule: a token sees the tokens of its own path up to itself, and nothing else.
    expected = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for path in tree.paths:
        for place, query in enumerate(path):
            expected[query, path[: place + 1]] = True
    assert torch.equal(visible(stack([tree], 0))[0, 0], expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8), st.sampled_from([None, 1, 3, 8]))
def test_the_pieces_cover_the_rule_once(seed, depth, fan_out, window):
    rows = build_rows([random_forest(seed, depth=depth, fan_out=fan_out, vocabulary=8)], 0)
    covered = torch.zeros(rows.input_ids.shape[1], rows.input_ids.shape[1], dtype=torch.int64)
    for piece in pieces(find_runs(rows), window):
        distance = piece.lead + torch.arange(piece.queries)[:, None] - torch.arange(piece.keys)
        seen = torch.ones_like(distance) if piece.kind == 0 else distance >= 0
        if piece.kind == 2:
            seen = seen & (distance < window)
        covered[piece.query : piece.query + piece.queries, piece.key : piece.key + piece.keys] += seen
    assert torch.equal(covered, visible(rows, window=window)[0, 0].long())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8), st.integers(0, 60))
def test_packing_keeps_every_sequence_and_the_length(seed, depth, fan_out, room):
    sequences = many(seed, depth=depth, fan_out=fan_out, vocabulary=6)
    row_length = max(len(item.input_ids) for item in sequences) + room
    rows = pack(sequences, row_length)
    assert sorted(index for row in rows for index in row) == list(range(len(sequences)))
    assert all(len(build_tree([sequences[i] for i in row]).input_ids) <= row_length for row in rows)
    if len(build_tree(sequences).input_ids) <= row_length:
        assert len(rows) == 1


def test_a_common_beginning_goes_into_one_row():
    """Best fit by length alone would mix the two families of sequences."""
    families = [[[family] * 20 + [10 * family + number] * 3 for number in range(1, 5)] for family in (1, 2)]
    sequences = [sequence(ids) for pair in zip(*families, strict=True) for ids in pair]
    # A family has 19 shared tokens and four times 4 of its own.
    assert sorted(pack(sequences, 35)) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    # One that does not fit pays for its beginning again.
    sizes = [len(build_tree([sequences[i] for i in row]).input_ids) for row in pack(sequences, 31)]
    assert sorted(sizes) == [27, 27, 27, 27] or sorted(sizes) == [23, 23, 31, 31]


def test_a_sequence_that_is_the_beginning_of_another():
    """Its last token has no next token of its own, so one continuation goes on from it."""
    tree = build_tree([sequence([5, 6, 7]), sequence([5, 6, 7, 8])])
    assert tree.input_ids.tolist() == [5, 6, 7, 8]
    assert tree.shift_labels.tolist() == [6, 7, 8, -100]
    assert tree.trained_counts.tolist() == [2, 2, 1, 0]
    tree = build_tree([sequence([5, 6, 7, 9]), sequence([5, 6, 7]), sequence([5, 6, 7, 8])])
    assert tree.input_ids.tolist() == [5, 6, 7, 8, 7, 9]
    assert [path.tolist() for path in tree.paths] == [[0, 1, 4, 5], [0, 1, 2], [0, 1, 2, 3]]


def test_equal_sequences_are_one_with_the_sum_of_their_weights():
    tree = build_tree([sequence([5, 6, 7], weight=2.0), sequence([5, 6, 7], weight=0.5)])
    assert tree.input_ids.tolist() == [5, 6, 7]
    assert tree.loss_weights.tolist() == [2.5, 2.5, 0.0]
    assert tree.trained_counts.tolist() == [2, 2, 0]


def test_a_pair_that_does_not_fit_names_the_option():
    with pytest.raises(ValueError, match="raise row_length"):
        pack([sequence([1, 2, 3])], 2)


def test_a_very_deep_tree_takes_a_plan_of_linear_size():
    """Each sequence leaves the longest one three tokens later: 1,000 levels, and no recursion."""
    ids = list(range(3, 3003))
    sequences = [sequence([*ids[: 3 * level], 5000]) for level in range(1, 1000)] + [sequence(ids)]
    assert [len(row) for row in pack(sequences, 10_000)] == [1000]
    assert len(pack(sequences, 3_500)) == 3
    rows = stack([build_tree(sequences)], 0)
    assert rows.input_ids.shape[1] == 3000 + 2 * 999
    assert len(pieces(find_runs(rows))) == 1000 + 999 + 999  # runs, leaves, and what each inner run's descendants read
    assert len(pieces(find_runs(rows), window=30)) < 30 * 2000


def test_sequences_that_each_continue_the_one_before_are_one_run():
    ids = list(range(3, 3003))
    sequences = [sequence(ids[: 3 * level]) for level in range(1, 1001)]
    assert pack(sequences, 3000) == [list(range(1000))]
    rows = stack([build_tree(sequences)], 0)
    assert rows.input_ids.tolist() == [ids]
    assert rows.trained_counts.sum() == sum(3 * level - 1 for level in range(1, 1001))
    assert len(find_runs(rows)) == 1


def test_sequences_of_a_group_are_its_pairs():
    for row in random_forest(3):
        assert [len(item.input_ids) for item in sequences_of(row)] == sequence_lengths(row)
        assert [item.units for item in sequences_of(row)] == row["segment_units"]


def test_the_deep_rows_of_the_tests_have_every_case():
    """Many levels and branches, equal sequences, sequences that begin others, one-token runs."""
    packed = deep_rows()
    rows = build_rows(packed, 0)
    runs = find_runs(rows)
    assert [max(levels) for levels in (depths(build_rows([row], 0)) for row in packed)] == [5, 5, 7]
    assert max(sum(run.parent == number for run in runs) for number in range(len(runs))) == 5
    assert any(run.length == 1 for run in runs)
    for row in packed:
        ids = [item.input_ids.tolist() for group in row for item in sequences_of(group)]
        assert any(one == other for place, one in enumerate(ids) for other in ids[:place])
        assert any(one != other and one == other[: len(one)] for one in ids for other in ids)
