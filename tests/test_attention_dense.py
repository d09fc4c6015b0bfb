"""The reference backend against one pair at a time."""

import pytest
import torch
from helpers.families import PAD, WINDOW, assert_equivalent, build, plain_compute, random_group
from helpers.trees import deep_rows, random_forest
from transformers import AutoConfig

from mrt_plugin.attention.backend import ExpandedBackend, UnsharedBackend
from mrt_plugin.attention.family import NotShareable
from mrt_plugin.attention.masks import DenseBackend, visible
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import build_group_row, expand
from mrt_plugin.layout.rows import build_rows

PACKED = [[random_group(7, [3, 5, 1]), random_group(2, [4])], [random_group(20, [2, 9])], *deep_rows()]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_llama_equals_one_pair_at_a_time(implementation: str) -> None:
    model = build("llama", attn_implementation=implementation)
    assert_equivalent(DenseBackend(model.config), "llama", PACKED, attn_implementation=implementation)


def test_the_rule_on_a_small_row() -> None:
    pairs = [Pair([5, *ids], [False] * len(ids) + [True]) for ids in ([6, 7, 8], [6, 7, 9], [6, 4], [3])]
    rows = build_rows([[build_group_row(pairs)]], PAD, pad_to_multiple_of=12)
    # In depth-first order: 5 3; 5, of which 6 4; 6, of which 7 8 and 7 9. The first 5 is followed by a 3.
    assert rows.input_ids[0].tolist() == [5, 3, 5, 6, 4, 6, 7, 8, 7, 9, PAD, PAD]
    expected = """
    1...........
    11..........
    ..1.........
    ..11........
    ..111.......
    ..1..1......
    ..1..11.....
    ..1..111....
    ..1..1..1...
    ..1..1..11..
    ..........1.
    ...........1
    """.split()
    found = ["".join(".1"[int(cell)] for cell in line) for line in visible(rows)[0, 0]]
    assert found == expected


def test_the_window_counts_positions_not_row_indices() -> None:
    rows = build_rows([[random_group(4, [WINDOW, WINDOW])]], PAD)
    mask = visible(rows, window=4)[0, 0]
    second = 3 + 1 + WINDOW  # the second segment starts at position 3 again and sees positions 0 to 3
    assert torch.nonzero(mask[second]).flatten().tolist() == [0, 1, 2, second]


def test_chunks_count_positions() -> None:
    rows = build_rows([[random_group(4, [3, 3])]], PAD)
    mask = visible(rows, chunk=4)[0, 0]
    second = 3 + 4  # position 3: the last of the first chunk
    assert torch.nonzero(mask[second]).flatten().tolist() == [0, 1, 2, second]
    assert torch.nonzero(mask[second + 2]).flatten().tolist() == [second + 1, second + 2]


def test_a_state_along_the_row_is_refused() -> None:
    config = AutoConfig.for_model(
        "qwen3_next", layer_types=["linear_attention", "full_attention"], num_hidden_layers=2
    )
    with pytest.raises(NotShareable, match="linear_attention.*prefix_backend=fork or layout=expanded"):
        DenseBackend(config)


def test_expanded_rows_go_through_the_model_as_it_is() -> None:
    pairs = [[pair] for row in PACKED for group in row for pair in expand(group)]
    for name in ("llama",):
        assert_equivalent(ExpandedBackend(), name, pairs)


def test_expanded_refuses_rows_of_several_pairs() -> None:
    model = build("llama")
    rows = build_rows(PACKED, PAD)
    with pytest.raises(ValueError, match="one pair per row"):
        ExpandedBackend().token_nll(model, rows, plain_compute(model))


@pytest.mark.parametrize("seed", range(3))
def test_shared_rows_without_sharing_equal_the_dense_rule(seed: int) -> None:
    """The backend of rows that were collated before sharing was refused: every label once, trained or only read."""
    assert_equivalent(UnsharedBackend(), "llama", [random_forest(seed), [random_group(5, [3, 1])]])
    assert_equivalent(UnsharedBackend(), "llama", PACKED)
