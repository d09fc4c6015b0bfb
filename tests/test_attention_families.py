"""Every family, with every backend that it can have, against one pair at a time."""

from typing import Any

import pytest
from families import ATTENTION_ONLY, CHUNKED, FAMILIES, assert_equivalent, build, random_group

from mrt_plugin.attention.dense import DenseBackend
from mrt_plugin.attention.expanded import ExpandedBackend, OneByOneBackend
from mrt_plugin.attention.two_part import TwoPartBackend
from mrt_plugin.layout.group_row import expand

# Prompts and responses shorter and longer than the window; one response, one-token responses and no shared prefix.
PACKED = [
    [random_group(17, [3, 15, 1]), random_group(2, [4])],
    [random_group(20, [2, 9])],
    [random_group(5, [3]), random_group(1, [2, 12])],
]
PAIRS = [[pair] for row in PACKED for group in row for pair in expand(group)]


@pytest.mark.parametrize("name", FAMILIES)
def test_expanded_rows(name: str) -> None:
    assert_equivalent(ExpandedBackend(), name, PAIRS)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba2"])
def test_rows_one_by_one(name: str) -> None:
    for padding_side in ("right", "left"):
        assert_equivalent(OneByOneBackend(), name, PAIRS, padding_side=padding_side)


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
    assert_equivalent(TwoPartBackend(build(name).config), name, packed, padding_side="left")
