"""The proof passes what is exact and catches every kind of break, naming its cause."""

import re
from typing import Any

import pytest
import torch
from helpers.families import (
    ATTENTION_ONLY,
    CHUNKED,
    DSA,
    PAD,
    WINDOW,
    build,
    gradient,
    one_by_one,
    random_group,
    rows_loss,
)
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AttentionInterface, GPTNeoConfig, GPTNeoForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mrt_plugin.attention import NotShareable, prove
from mrt_plugin.attention.backend import Compute
from mrt_plugin.attention.family import read_family
from mrt_plugin.attention.fork import ForkBackend
from mrt_plugin.attention.masks import DenseBackend, visible
from mrt_plugin.attention.plain import PlainForward, settle_plain
from mrt_plugin.attention.proof import all_logits
from mrt_plugin.attention.small_model import THRESHOLDS, small_config
from mrt_plugin.attention.two_part import TwoPartBackend, two_part_attention
from mrt_plugin.layout.rows import Rows, build_rows

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
    settle_plain(model, [GROUP], all_logits(model), PAD)  # its own attention is the one that is exact
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
    assert f"Cause: sliding_window={WINDOW} is ignored, or not taken on positions." in message


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
        return compute({**kwargs, "use_cache": False}, rows.shift_labels)


class ReadAsPackedDocuments(TwoPartBackend):
    """What transformers does with restarting positions when no mask is given: the prompt is cut off."""

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> torch.Tensor:
        return compute(
            {"input_ids": rows.input_ids, "position_ids": rows.position_ids, "use_cache": False}, rows.shift_labels
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


# ---------------------------------------------------------------- a model that depends on the shape of its batch

SPARSE = ("deepseek_v32", "glm_moe_dsa")


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_attention_shares_with_the_attention_that_is_exact(name: str, caplog: Any) -> None:
    """In older releases of transformers `sdpa` moves by nats with padding: the model gets `eager`."""
    model = build(name, **DSA)
    assert model.config._attn_implementation == "sdpa"
    backend, beside = ForkBackend(model.config), random_group(12, [5, 8])
    proof = prove(model, backend, GROUP, beside=[beside])
    assert (model.config._attn_implementation == "eager") == ("attn_implementation=sdpa" in caplog.text)
    assert proof.nll_difference is not None
    assert proof.nll_difference < 1e-5
    reference = build(name, **DSA)
    expected, expected_gradient = gradient(reference, lambda: one_by_one(reference, [GROUP, beside]))
    rows = build_rows([[GROUP, beside]], PAD)
    found, found_gradient = gradient(model, lambda: rows_loss(backend, model, rows))
    assert abs(found / expected - 1) < 1e-5
    assert (found_gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("name", SPARSE)
def test_a_model_that_no_attention_makes_exact_is_named(name: str) -> None:
    """With two index heads many keys have a score of exactly 0, and ties are broken by the shape of the batch."""
    model = build(name, **{**DSA, "index_n_heads": 2})
    with pytest.raises(NotShareable, match=f"{name} depends on what stands beside a pair.*sdpa.*layout=expanded"):
        prove(model, ForkBackend(model.config), GROUP)
    assert model.config._attn_implementation == "sdpa"


class Off(ForkBackend):
    """A backend that is wrong by a tenth of a nat."""

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> torch.Tensor:
        return super().token_nll(model, rows, compute) + 0.1 * (rows.shift_labels != -100)


@pytest.mark.parametrize("name", SPARSE)
def test_a_refusal_restores_the_attention(name: str, caplog: Any) -> None:
    """Also where `eager` was set before the part that refuses."""
    model = build(name, **DSA)
    with pytest.raises(NotShareable):
        prove(model, Off(model.config), GROUP, beside=[random_group(12, [5, 8])])
    if "Its attention is set to eager" not in caplog.text:
        pytest.skip("sdpa is exact for it in this release of transformers")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", SPARSE)
def test_part_one_runs_with_the_attention_of_the_model(name: str) -> None:
    settled = build(name, **DSA)
    settle_plain(settled, [GROUP], all_logits(settled), PAD)
    for attention in ("eager", "sdpa"):
        model = build(name, **DSA, attn_implementation=attention)
        if attention == "sdpa" and settled.config._attn_implementation == "eager":
            with pytest.raises(NotShareable, match="on a small random model"):
                prove(model, ForkBackend(model.config))
        else:
            prove(model, ForkBackend(model.config))


def test_noise_does_not_widen_the_tolerance_beyond_what_rounding_explains() -> None:
    def tolerance(noise: float, dtype: torch.dtype) -> float:
        return PlainForward("sdpa", torch.zeros(1), noise, torch.finfo(dtype).eps).tolerance

    assert tolerance(1e-6, torch.float32) == 1e-4
    assert tolerance(4e-5, torch.float32) == 2e-4
    assert tolerance(1.0, torch.float32) == 3e-4
    assert tolerance(1e-4, torch.bfloat16) == 8 * 2**-7
    assert tolerance(1.0, torch.bfloat16) == 32 * 2**-7
    assert not PlainForward("sdpa", torch.zeros(1), float("nan"), 2**-7).steady


# ---------------------------------------------------------------- thresholds of a length


def test_a_window_under_another_name_is_reached() -> None:
    config = GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, vocab_size=96, attention_types=[[["global", "local"], 1]]
    )
    model = GPTNeoForCausalLM(config).train()
    with pytest.raises(NotShareable, match="Cause: window_size=256 is ignored, or not taken on positions"):
        prove(model, DenseBackend(config))
    assert prove(model, DenseBackend(config), reach=256).backend == "dense", "no row comes to the threshold"


def test_a_temperature_by_position_is_reached() -> None:
    model = build("llama4", attn_temperature_tuning=True, floor_scale=8192, attention_chunk_size=8192)
    with pytest.raises(NotShareable, match="Cause: floor_scale=8192 is ignored, or not taken on positions"):
        prove(model, DenseBackend(model.config))
    assert prove(model, DenseBackend(model.config), reach=4096).backend == "dense"
    assert prove(model, ForkBackend(model.config)).backend == "fork"


def test_thresholds_inside_a_dictionary_are_lowered() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"rope_theta": 1e4, "original_max_position_embeddings": 64}
    model = build("llama", rope_parameters=rope)
    assert small_config(model.config).rope_parameters["original_max_position_embeddings"] == 8
    assert small_config(model.config, reach=64).rope_parameters["original_max_position_embeddings"] == 64
    prove(model, TwoPartBackend(model.config), GROUP)


def test_a_small_model_has_experts_for_every_group() -> None:
    model = build("deepseek_v32", **{**DSA, "n_routed_experts": 64, "n_group": 8, "topk_group": 4})
    prove(model, ForkBackend(model.config), GROUP)


LENGTH_LIKE = re.compile(
    "window|chunk|top_?k|extent|distance|floor|original_max|local|block|compress|span|context_len"
)
NO_THRESHOLD = {
    # counts and widths
    "centroid_intermediate_top_k", "index_local_blocks", "max_window_layers", "moe_top_k", "moe_topk", "num_blocks",
    "n_layers_per_attn_res_block",
    "num_local_experts", "num_mem_blocks", "num_random_blocks", "sliding_window_pattern", "_sliding_window_pattern",
    "prefix_dense_sliding_window_pattern", "topk_group",
    # sizes of the pieces that a computation is cut into, without a change of its result
    "chunk_size", "chunk_size_feed_forward", "chunk_size_lm_head", "mamba_chunk_size", "max_inference_chunksize",
    "block_multiple_of", "block_size",
    # the end of what the model takes, and a family whose attention is not causal row by row (Reformer)
    "context_length", "local_attn_chunk_length", "lsh_attn_chunk_length", "local_num_chunks_after",
    "local_num_chunks_before", "lsh_num_chunks_after", "lsh_num_chunks_before",
}  # fmt: skip


def numbers(values: dict[str, Any]) -> set[str]:
    """The names of the whole numbers in a configuration and in the dictionaries inside it."""
    inside = [numbers(value) for value in values.values() if isinstance(value, dict)]
    return {name for name, value in values.items() if type(value) is int}.union(*inside)


def test_every_length_in_a_configuration_is_known() -> None:
    """A release that adds one must say here whether the proof has to reach it."""
    unknown = {}
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if not model_type.startswith("musicgen") and not model_type.endswith("assistant"):  # which need others'
            text = CONFIG_MAPPING[model_type]().get_text_config()
            lengths = {name for name in numbers(vars(text)) if LENGTH_LIKE.search(str(name))}
            unknown.update(dict.fromkeys(lengths - set(THRESHOLDS) - NO_THRESHOLD, model_type))
    assert not unknown


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


def test_new_models_are_complete_under_zero3():
    """transformers shards every model that it builds while a ZeRO-3 configuration is set."""
    from transformers.integrations import deepspeed

    from mrt_plugin.trainer.processes import complete_models

    class Zero3:
        def is_zero3(self):
            return True

    config = Zero3()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        with complete_models():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed._hf_deepspeed_config_weak_ref() is config
    finally:
        deepspeed.unset_hf_deepspeed_config()
