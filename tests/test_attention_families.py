"""Every family, with every backend that it can have, against one pair at a time."""

from typing import Any

import pytest
from helpers import tiny
from helpers.families import (
    ATTENTION_ONLY,
    CHUNKED,
    FAMILIES,
    assert_equivalent,
    build,
    gradient,
    one_by_one,
    random_group,
    rows_loss,
)
from helpers.trees import random_forest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mrt_plugin import GroupedResponseCollator
from mrt_plugin.attention.backend import ExpandedBackend, OneByOneBackend
from mrt_plugin.attention.family import Family, NotShareable, read_family
from mrt_plugin.attention.masks import DenseBackend
from mrt_plugin.attention.two_part import TwoPartBackend
from mrt_plugin.layout.group_row import expand
from mrt_plugin.layout.rows import Rows

# Prompts and responses shorter and longer than the window; one response, one-token responses and no shared prefix.
# The last row is a tree of five levels.
PACKED = [
    [random_group(17, [3, 15, 1]), random_group(2, [4])],
    [random_group(20, [2, 9])],
    [random_group(5, [3]), random_group(1, [2, 12])],
    random_forest(56, depth=6, fan_out=8, most=10),
]
PAIRS = [[pair] for row in PACKED for group in row for pair in expand(group)]


@pytest.mark.parametrize("name", FAMILIES)
def test_expanded_rows(name: str) -> None:
    assert_equivalent(ExpandedBackend(), name, PAIRS)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba2"])
def test_rows_one_by_one(name: str) -> None:
    assert_equivalent(OneByOneBackend(), name, PAIRS)


def test_a_tokenizer_that_pads_on_the_left() -> None:
    """Llama 4 takes the temperature of attention from a token's index in its row, which padding before it changes."""
    changes = {"attn_temperature_tuning": True, "floor_scale": 4, "attn_scale": 1.0}
    groups = [group for row in PACKED for group in row]
    reference = build("llama4", **changes)
    expected, expected_gradient = gradient(reference, lambda: one_by_one(reference, groups))
    model = build("llama4", **changes)
    collator = GroupedResponseCollator(tiny.tokenizer(padding_side="left"), layout="expanded", packing=False)
    rows = Rows.from_batch(collator(groups))
    found, found_gradient = gradient(model, lambda: rows_loss(ExpandedBackend(), model, rows))
    assert abs(found / expected - 1) < 1e-5
    assert (found_gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("backend", [DenseBackend, TwoPartBackend])
@pytest.mark.parametrize("name", ATTENTION_ONLY)
def test_shared_rows(name: str, backend: Any) -> None:
    if name in CHUNKED and backend is not DenseBackend:
        with pytest.raises(ValueError, match="prefix_backend=dense"):
            backend(build(name).config)
        return
    assert_equivalent(backend(build(name).config), name, PACKED)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
def test_packed_pairs(name: str) -> None:
    packed = [[pair for [pair] in PAIRS[:4]], [pair for [pair] in PAIRS[4:]]]
    assert_equivalent(TwoPartBackend(build(name).config), name, packed)


NO_DEFAULT = ("musicgen", "musicgen_melody", "gemma4_assistant")
"""Configurations that transformers itself cannot build without arguments, in one release or the other."""


@pytest.mark.parametrize("model_type", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_causal_configuration_is_read(model_type: str) -> None:
    if model_type not in NO_DEFAULT:
        assert isinstance(read_family(CONFIG_MAPPING[model_type]()), Family)


def test_layers_that_differ() -> None:
    """The largest head decides which kernel serves; windows of several sizes are refused, as no backend knows them."""
    config = CONFIG_MAPPING["gemma4_text"]()
    assert read_family(config).head_size == 512
    windows = CONFIG_MAPPING["gemma3_text"](per_layer_config={0: {"sliding_window": 64}})
    with pytest.raises(NotShareable, match="differ in sliding_window.*layout=expanded"):
        read_family(windows)
