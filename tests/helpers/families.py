"""Tiny random models of many families, and the comparisons that the attention tests make."""

import random
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mrt_plugin.attention.backend import Compute
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE, GroupRow, build_group_row, expand
from mrt_plugin.layout.rows import Rows, build_rows

VOCABULARY = 96
PAD = 0
WINDOW = 9
"""Shorter than the rows that the tests build, so that a window taken on row indices shows."""

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
    # Large enough for attention to be far from uniform, as it is in a trained model.
    "initializer_range": 0.3,
}
MOE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2, "output_router_logits": False}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "mistral-window": {"model_type": "mistral", "sliding_window": WINDOW},
    # Scores far from 0, so that leaving the soft-capping out would show.
    "gemma2": {"sliding_window": WINDOW, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 1},
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    # The last two layers take keys and values from the first two; each layer gets an input of its own from the ids.
    "gemma3n": {
        "model_type": "gemma3n_text",
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "sliding_window": WINDOW,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.5, 0.0] * 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "pad_token_id": None,  # its embedding would be 0, of which Gemma 3n has no gradient
    },
    "gemma4": {
        "model_type": "gemma4_text",
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "sliding_window": WINDOW,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "phi3": {},
    "phi3-window": {"model_type": "phi3", "sliding_window": WINDOW},
    "olmo2": {},
    "granite": {"attention_multiplier": 0.3, "logits_scaling": 2.0, "residual_multiplier": 0.7},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "init_std": 0.3},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    },
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**MOE, "num_experts": 4},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "cohere2": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "smollm3": {},
    "llama4": {
        "model_type": "llama4_text",
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "attention_chunk_size": WINDOW,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "attn_temperature_tuning": False,
    },
    "qwen3_next": {**LINEAR, **MOE, "num_experts": 4, "shared_expert_intermediate_size": 24},
    "qwen3_5": {"model_type": "qwen3_5_text", **LINEAR},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **MAMBA,
        "num_local_experts": 4,
        "shared_intermediate_size": 48,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"],
        "ssm_state_size": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "olmo_hybrid": LINEAR,
    # Its last two layers share the weights of their attention.
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_key_value_heads": 4,
        "attention_head_dim": 16,
        "mamba_d_state": 8,
        "mamba_ngroups": 2,
        "n_mamba_heads": 8,
        "chunk_size": 8,
        "use_mem_rope": True,
        "adapter_rank": 4,
    },
}
UNFORKABLE: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "jamba": {
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_key_value_heads": 4,
        "attention_head_dim": 16,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "minimax": {"num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"], "block_size": 8},
}
OWN_STATES: dict[str, dict[str, Any]] = {
    "recurrent_gemma": {
        "lru_width": 32,
        "attention_window_size": WINDOW,
        "block_types": ["recurrent", "attention"],
        "num_hidden_layers": 3,
    },
    "rwkv": {"attention_hidden_size": 32},
}
"""Families that keep a state outside of transformers' cache."""
DSA = {
    "index_topk": 16,
    "index_head_dim": 16,
    "index_n_heads": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
"""DeepSeek-V3.2 and its relatives, which read the keys that an indexer picks: transformers' `sdpa` is wrong for them
under a padding mask. Few index heads give keys equal scores, and which of them is read then depends on the batch."""
HYBRID = ("bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "lfm2", "olmo_hybrid", "zamba2")
STATEFUL = ("qwen3_next", "qwen3_5", "mamba2", *HYBRID)
CHUNKED = ("llama4",)
ATTENTION_ONLY = tuple(name for name in FAMILIES if name not in STATEFUL)


def build(name: str, **changes: Any) -> PreTrainedModel:
    """A random fp32 model of the family, the same at every call, in training mode."""
    settings = {**SMALL, **FAMILIES.get(name, UNFORKABLE.get(name, {})), **changes}
    if name == "gpt2":  # whose configuration has names of its own
        settings = {key: value for key, value in settings.items() if key in FAMILIES[name] or key not in SMALL}
        settings.update(
            vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, initializer_range=SMALL["initializer_range"]
        )
    model_type = settings.pop("model_type", name)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    return model.train()


def plain_compute(model: torch.nn.Module) -> Compute:
    """A `compute` that holds all logits: slow, short and obviously right."""

    def compute(forward_kwargs: dict[str, Any], shift_labels: torch.Tensor) -> torch.Tensor:
        logits = model(**forward_kwargs).logits.float()
        nll = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), shift_labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        return nll.view(shift_labels.shape)

    return compute


def random_group(prompt: int, responses: list[int], seed: int = 0) -> GroupRow:
    """A group of random tokens: `prompt` shared tokens, then a response of each length."""
    rng = random.Random(f"{seed} {prompt} {responses}")
    shared = [rng.randrange(3, VOCABULARY) for _ in range(prompt)]
    pairs = []
    for index, length in enumerate(responses):
        # Different first tokens keep the shared prompt from growing into the responses.
        own = [3 + index % (VOCABULARY - 3)] + [rng.randrange(3, VOCABULARY) for _ in range(length - 1)]
        pairs.append(Pair(shared + own, [False] * prompt + [True] * length))
    return build_group_row(pairs)


def one_by_one(model: torch.nn.Module, groups: list[GroupRow]) -> torch.Tensor:
    """The summed weighted NLL of the groups' pairs, each in a plain forward of its own."""
    compute = plain_compute(model)
    total = torch.zeros(())
    for group in groups:
        for pair in expand(group):
            rows = build_rows([[pair]], PAD)
            nll = compute({"input_ids": rows.input_ids}, rows.shift_labels)
            total = total + (nll * rows.loss_weights).sum()
    return total


def gradient(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the gradient of all trainable parameters as one vector."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    flat = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    return value.detach(), torch.cat(flat).double()


def rows_loss(backend: Any, model: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """The summed weighted NLL of rows through a backend."""
    nll: torch.Tensor = backend.token_nll(model, rows, plain_compute(model))
    return (nll * rows.loss_weights).sum()


def assert_equivalent(backend: Any, name: str, packed: list[list[GroupRow]], **changes: Any) -> None:
    """The backend's loss and gradient on packed rows are those of one pair at a time: 1e-5, and 1e-4 of the norm."""
    groups = [group for row in packed for group in row]
    reference = build(name, **{"attn_implementation": "eager", **changes})
    expected, expected_gradient = gradient(reference, lambda: one_by_one(reference, groups))
    model = build(name, **changes)
    backend.prepare_model(model)  # and once more, which changes nothing
    backend.prepare_model(model)
    rows = build_rows(packed, PAD)
    found, found_gradient = gradient(model, lambda: rows_loss(backend, model, rows))
    assert abs(found / expected - 1) < 1e-5
    assert (found_gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
