"""The proof passes what is exact and catches every kind of break, naming its cause."""

from typing import Any

import pytest
import torch
from families import ATTENTION_ONLY, CHUNKED, WINDOW, build, random_group
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AttentionInterface

from mrt_plugin.attention import NotShareable, prove
from mrt_plugin.attention.backend import Compute
from mrt_plugin.attention.dense import DenseBackend
from mrt_plugin.attention.family import read_family
from mrt_plugin.attention.rule import visible
from mrt_plugin.attention.small_model import small_config
from mrt_plugin.attention.two_part import TwoPartBackend, two_part_attention
from mrt_plugin.layout.rows import Rows

GROUP = random_group(3 * WINDOW, [3, 2 * WINDOW, 7])


@pytest.mark.parametrize("name", ATTENTION_ONLY)
def test_exact_backends_pass(name: str) -> None:
    model = build(name)
    backend = (DenseBackend if name in CHUNKED else TwoPartBackend)(model.config)
    state = torch.random.get_rng_state()
    proof = prove(model, backend, GROUP)
    assert proof.tokens == 3 + 2 * WINDOW + 7
    assert proof.nll_difference is not None
    assert proof.nll_difference < 1e-5
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_lora_model_passes_and_stays_prepared() -> None:
    model = get_peft_model(build("gemma3"), LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"))
    backend = TwoPartBackend(model.config)
    prove(model, backend, GROUP)
    assert model.config._attn_implementation == backend.attention


def test_half_precision_passes() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = build("llama").to(dtype)
        proof = prove(model, TwoPartBackend(model.config), GROUP)
        assert proof.nll_tolerance is not None
        assert proof.nll_tolerance < 0.2


def refusal(name: str, backend: Any, **changes: Any) -> str:
    model = build(name, **changes)
    before = model.config._attn_implementation
    with pytest.raises(NotShareable) as caught:
        prove(model, backend(model.config), GROUP)
    assert model.config._attn_implementation == before, "a refused model keeps its own attention"
    return str(caught.value)


class WindowIgnored(DenseBackend):
    def _mask(self, kind: str, rows: Rows, dtype: torch.dtype | None) -> torch.Tensor:
        return super()._mask("full_attention", rows, dtype)


class WindowOnRowIndices(DenseBackend):
    def _mask(self, kind: str, rows: Rows, dtype: torch.dtype | None) -> torch.Tensor:
        index = torch.arange(rows.input_ids.shape[1])
        seen = visible(rows)
        if kind == "sliding_attention":
            assert self.family.window is not None
            seen &= index[:, None] - index < self.family.window
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("broken", [WindowIgnored, WindowOnRowIndices])
@pytest.mark.parametrize("name", ["mistral-window", "gemma3", "qwen2-window"])
def test_a_wrong_window_is_caught(name: str, broken: Any) -> None:
    message = refusal(name, broken, attn_implementation="eager")
    assert f"Cause: the sliding window of {WINDOW} is ignored, or not taken on positions." in message


def without_sinks(*args: Any, s_aux: torch.Tensor | None = None, **kwargs: Any) -> Any:
    return two_part_attention(*args, **kwargs)


def without_softcap(*args: Any, softcap: float | None = None, **kwargs: Any) -> Any:
    return two_part_attention(*args, **kwargs)


AttentionInterface.register("broken_sinks", without_sinks)
AttentionInterface.register("broken_softcap", without_softcap)


class SinksIgnored(TwoPartBackend):
    attention = "broken_sinks"


class SoftcapIgnored(TwoPartBackend):
    attention = "broken_softcap"


def test_ignored_sinks_are_caught() -> None:
    assert "Cause: the attention sinks are ignored." in refusal("gpt_oss", SinksIgnored)


def test_ignored_soft_capping_is_caught() -> None:
    assert "Cause: the soft-capping of attention scores at 0.5 is ignored." in refusal("gemma2", SoftcapIgnored)


class StateForgotten(DenseBackend):
    """A mask over layers that carry a state."""

    def __init__(self, config: Any) -> None:
        self.family = read_family(config)
        self._before = None

    def prepare_model(self, model: Any) -> None:
        pass

    def _mask(self, kind: str, rows: Rows, dtype: torch.dtype | None) -> torch.Tensor:
        return super()._mask("full_attention", rows, dtype) if kind == "full_attention" else None  # type: ignore


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5", "mamba2"])
def test_a_leaking_state_is_caught(name: str) -> None:
    assert "Cause: its layers of kind linear_attention carry a state" in refusal(name, StateForgotten)


class MaskIgnored(DenseBackend):
    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> torch.Tensor:
        kwargs = {
            "input_ids": rows.input_ids,
            "position_ids": rows.position_ids,
            "attention_mask": rows.attention_mask,
        }
        return compute({**kwargs, "use_cache": False}, rows.labels)


class ReadAsPackedDocuments(TwoPartBackend):
    """What transformers does with restarting positions when no mask is given: the prompt is cut off."""

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> torch.Tensor:
        return compute(
            {"input_ids": rows.input_ids, "position_ids": rows.position_ids, "use_cache": False}, rows.labels
        )


@pytest.mark.parametrize("broken", [MaskIgnored, ReadAsPackedDocuments])
def test_an_ignored_mask_is_caught(broken: Any) -> None:
    for name in ("llama", "gpt2"):
        assert "Cause: the mask, or the row plan, does not reach the attention" in refusal(name, broken)


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        # What a kernel library's replacement does: it takes the arguments that it knows.
        ({}, "is not handed the arguments of the model's forward"),
        ({"attention_mask": None}, "something about the loaded model is special"),
    ],
)
def test_a_patched_model_is_caught_by_part_two(patch: dict[str, Any], reason: str) -> None:
    model = build("qwen3")
    for layer in model.model.layers:
        attend = layer.self_attn.forward
        layer.self_attn.forward = lambda row_plan=None, attend=attend, **kwargs: attend(**{**kwargs, **patch})
    with pytest.raises(NotShareable, match=reason):
        prove(model, TwoPartBackend(model.config), GROUP)


def test_without_a_group_only_the_configuration_is_proved() -> None:
    model = build("llama")
    proof = prove(model, TwoPartBackend(model.config))
    assert proof.nll_difference is None
    assert proof.tokens == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gptj", "does not let its attention be exchanged"),
        ("stablelm", "is not handed the arguments of the model's forward"),
        ("doge", "the gradient by"),
    ],
)
def test_families_that_do_not_fit_are_refused(name: str, reason: str) -> None:
    extra = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4} if name == "gptj" else {}
    assert reason in refusal(name, TwoPartBackend, **extra)


def test_a_small_model_that_cannot_be_built_is_a_refusal() -> None:
    model = build("llama")
    model.config.num_attention_heads = 3  # of a hidden size that 3 does not divide
    with pytest.raises(NotShareable, match="could not be proved: a small llama"):
        prove(model, TwoPartBackend(model.config), GROUP)


def test_the_small_model_has_layers_that_reuse_keys_and_values() -> None:
    """One of each kind, beside the first layers; each keeps what is its own among the settings by layer."""
    full = CONFIG_MAPPING["gemma4_text"](num_kv_shared_layers=18, hidden_size=1536, global_head_dim=512)
    small = small_config(full)
    assert small.layer_types == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention", "full_attention"]
    assert small.num_kv_shared_layers == 2
    assert [layer.head_dim for layer in small.per_layer_config] == [256] * 5 + [512, 256, 512]
    assert small.vocab_size_per_layer_input == small.vocab_size
    small = small_config(CONFIG_MAPPING["gemma3n_text"]())
    assert small.num_hidden_layers == len(small.layer_types) == len(small.intermediate_size) == 7
    assert small.num_kv_shared_layers == 2
