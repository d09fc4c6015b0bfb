"""FlexAttention's block mask, and forward values on CPU, where it has no backward pass."""

import pytest
import torch
from helpers.families import ATTENTION_ONLY, PAD, WINDOW, build, one_by_one, plain_compute, random_group, rows_loss
from helpers.trees import deep_rows

from mrt_plugin.attention import NotShareable
from mrt_plugin.attention.masks import FlexBackend, block_mask, visible
from mrt_plugin.layout.rows import build_rows

PACKED = [[random_group(17, [3, 15, 1]), random_group(2, [4])], [random_group(20, [2, 9])], *deep_rows()]
NAMES = [name for name in ATTENTION_ONLY if name not in ("gpt2", "gpt_oss")]


@pytest.mark.parametrize("limits", [{}, {"window": WINDOW}, {"chunk": WINDOW}])
def test_the_block_mask_is_the_rule(limits: dict[str, int]) -> None:
    rows = build_rows(PACKED, PAD, pad_to_multiple_of=64)
    mask = block_mask(rows, **limits)
    count, width = rows.input_ids.shape
    batch, query, key = torch.meshgrid(torch.arange(count), torch.arange(width), torch.arange(width), indexing="ij")
    assert torch.equal(mask.mask_mod(batch, torch.zeros_like(batch), query, key)[:, None], visible(rows, **limits))


@pytest.mark.parametrize("name", NAMES)
def test_forward_equals_one_pair_at_a_time(name: str) -> None:
    model = build(name, attn_implementation="eager")
    with torch.no_grad():
        expected = one_by_one(model, [group for row in PACKED for group in row])
        backend = FlexBackend(model.config)
        backend.prepare_model(model)
        assert model.config._attn_implementation == "flex_attention"
        with torch.compiler.set_stance("force_eager"):  # the same arithmetic, without compiling kernels
            found = rows_loss(backend, model, build_rows(PACKED, PAD))
    assert abs(found / expected - 1) < 1e-5


def test_families_without_flex_are_refused() -> None:
    model = build("gpt2")
    with pytest.raises(NotShareable, match="prefix_backend=sdpa"):
        FlexBackend(model.config).prepare_model(model)


def test_shape_and_padding() -> None:
    model = build("llama")
    rows = build_rows(PACKED, PAD)
    backend = FlexBackend(model.config)
    backend.prepare_model(model)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        nll = backend.token_nll(model, rows, plain_compute(model))
    assert nll.shape == rows.shift_labels.shape
