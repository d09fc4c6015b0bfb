"""Which backend a model gets, and what is refused with which remedy."""

import pytest
from families import ATTENTION_ONLY, CHUNKED, FAMILIES, STATEFUL, build

from mrt_plugin.attention import NotShareable, resolve_backend
from mrt_plugin.attention.varlen import CUDAFlash
from mrt_plugin.options import PREFIX_BACKENDS


@pytest.mark.parametrize("name", FAMILIES)
def test_auto(name: str) -> None:
    config = build(name).config
    expected = "fork" if name in (*STATEFUL, *CHUNKED) else "sdpa"
    assert resolve_backend("auto", config, device_type="cpu", gradient_checkpointing=False).name == expected
    if expected == "fork":
        with pytest.raises(NotShareable, match=r"gradient_checkpointing=False.*layout=expanded"):
            resolve_backend("auto", config, device_type="cpu", gradient_checkpointing=True)
    on_gpu = resolve_backend("auto", config, device_type="cuda", gradient_checkpointing=False)
    assert on_gpu.name == ("flex" if name == "gemma2" else expected)


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("requested", ["sdpa", "dense", "flex"])
def test_a_state_leaves_the_fork_only(name: str, requested: str) -> None:
    with pytest.raises(NotShareable, match="prefix_backend=fork"):
        resolve_backend(requested, build(name).config, device_type="cuda", gradient_checkpointing=False)


@pytest.mark.parametrize("requested", ["auto", "sdpa", "flex"])
def test_attention_dropout_is_refused(requested: str) -> None:
    config = build("gpt2").config
    config.attn_pdrop = 0.1
    with pytest.raises(NotShareable, match="attention dropout 0.1"):
        resolve_backend(requested, config, device_type="cuda", gradient_checkpointing=False)


@pytest.mark.parametrize(
    ("head_size", "capability", "fits"),
    [
        (128, (9, 0), True),
        (256, (9, 0), True),
        (256, (8, 9), False),
        (128, (8, 6), True),
        (128, (7, 5), False),
        (100, (9, 0), False),
    ],
)
def test_heads_that_a_card_has_fused_kernels_for(head_size: int, capability: tuple[int, int], fits: bool) -> None:
    assert CUDAFlash.fits(head_size, capability) == fits


def test_flex_needs_a_gpu() -> None:
    with pytest.raises(NotShareable, match="no backward pass on CPU"):
        resolve_backend("flex", build("llama").config, device_type="cpu", gradient_checkpointing=False)


def test_unknown_backends_are_named() -> None:
    with pytest.raises(ValueError, match=f"choose one of auto, {', '.join(PREFIX_BACKENDS)}"):
        resolve_backend("flash", build("llama").config, device_type="cpu", gradient_checkpointing=False)


@pytest.mark.parametrize("name", ATTENTION_ONLY)
@pytest.mark.parametrize("requested", ["dense", "sdpa", "fork"])
def test_models_get_their_attention_back(name: str, requested: str) -> None:
    if name in CHUNKED and requested == "sdpa":
        return
    model = build(name)
    before = model.config._attn_implementation
    backend = resolve_backend(requested, model.config, device_type="cpu", gradient_checkpointing=False)
    backend.prepare_model(model)
    backend.restore_model(model)
    assert model.config._attn_implementation == before
