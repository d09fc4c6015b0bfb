"""Small random models of a given configuration, with layers of every kind, for the first part of the proof."""

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from mrt_plugin.attention.family import read_family
from mrt_plugin.attention.length_rope import lift_thresholds

WINDOW = 8
"""The window and chunk of the small model, in positions. Short rows are then already longer than it."""

THRESHOLDS = {
    "sliding_window": WINDOW,
    "sliding_window_size": WINDOW,  # Inkling
    "attention_chunk_size": WINDOW,
    "window_size": WINDOW,  # GPT-Neo
    "attention_window_size": WINDOW,  # RecurrentGemma
    "local_attention": WINDOW,  # ModernBERT
    "keep_window_size": WINDOW,  # Doge
    "floor_scale": WINDOW,  # Llama 4's temperature
    "log_scaling_n_floor": WINDOW,  # Inkling 2's temperature
    "local_attention_window_len": WINDOW,  # BLT
    "rel_extent": WINDOW,  # Inkling's relative positions
    "position_bias_max_distance": WINDOW,  # CPM-Ant
    "relative_max_distance": WINDOW,  # ProphetNet
    "original_max_position_embeddings": WINDOW,  # rotary scaling
    "index_topk": WINDOW,  # DeepSeek-V3.2, GLM
    "index_block_size": WINDOW // 2,  # MiniMax M3: keys beyond index_topk_blocks blocks of this size
    "index_topk_blocks": 2,
    "heavily_compressed_attention": WINDOW,  # DeepSeek-V4: tokens per compressed key
    "compressed_sparse_attention": WINDOW,
}
"""Settings that change what a model computes beyond some length or position, with their value in the small model."""

BEYOND = 10_000
"""A length beyond any row. Its negative is below any score."""

LONGEST = 8 * WINDOW
"""The most tokens of a sequence of the small model."""

VOCABULARY = 256

WIDTHS = (
    "hidden_size intermediate_size intermediate_size_mlp moe_intermediate_size shared_expert_intermediate_size "
    "word_embed_proj_dim ffn_dim n_embd n_inner"
).split()
HEADS = (
    "num_attention_heads num_key_value_heads n_head num_heads n_groups mamba_n_heads mamba_n_groups "
    "linear_num_key_heads linear_num_value_heads"
).split()
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


def small_config(config: PretrainedConfig, reach: int | None = None, lifted: str | None = None) -> PretrainedConfig:
    """Return the text configuration with few layers, small widths, few experts, low thresholds and no dropout.

    All widths and numbers of heads are divided by the same power of two. The threshold `lifted` is set beyond the
    small model's rows. Thresholds that rows of `reach` tokens do not exceed are kept; without it, all are lowered.
    """
    small = copy.deepcopy(config.get_text_config())
    values = {name: value for name, value in small.to_dict().items() if isinstance(value, int)}
    divisor = _divisor(small.to_dict())
    for name, value in _sizes(small.to_dict()):
        setattr(small, name, [size // divisor for size in value] if isinstance(value, list) else value // divisor)
    _keep_layers(small, divisor)
    most = {
        **dict.fromkeys(EXPERTS, 4 * (values.get("n_group") or 1)),
        **dict.fromkeys(("num_experts_per_tok", "top_k_experts"), 2),
    }
    for name, limit in most.items():
        if values.get(name):
            setattr(small, name, min(values[name], limit))
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        if values.get(name):
            setattr(small, name, VOCABULARY)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(small, name, None)
    for name, value in small.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(small, name, 0.0)
    lowered = {name: min(value, THRESHOLDS[name]) for name, value in thresholds(small, reach).items()}
    if lifted is not None:
        lowered[lifted] = BEYOND
    before = dict(vars(small))
    for name, value in _replaced(before, lowered).items():
        if value != before[name]:
            setattr(small, name, value)
    if read_family(small).softcap is not None:
        small.attn_logit_softcapping = 1.0  # low enough to matter to random scores
    lift_thresholds(small, LONGEST)  # the pairs of a run are all on one side of these thresholds
    # The weights are large enough for attention to be far from uniform, as in a trained model.
    for name in ("initializer_range", "init_std"):
        if name in small.to_dict():
            setattr(small, name, 1.5 * small.hidden_size**-0.5)
    if "output_router_logits" in small.to_dict():
        small.output_router_logits = False
    if "quantization_config" in small.__dict__:
        del small.quantization_config
    small.dtype = torch.float32
    return small


def thresholds(config: PretrainedConfig, reach: int | None = None) -> dict[str, int]:
    """Return the thresholds of a configuration that rows of `reach` tokens exceed, with their values."""
    return _thresholds(vars(config.get_text_config()), reach)


def _thresholds(values: dict[str, Any], reach: int | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _thresholds(value, reach)
        elif name in THRESHOLDS and isinstance(value, int) and (reach is None or value < reach):
            found[name] = value
    return found


def _replaced(values: dict[str, Any], new: dict[str, int]) -> dict[str, Any]:
    """Return the values, with those named in `new` replaced, also inside nested dictionaries."""
    return {
        name: _replaced(value, new) if isinstance(value, dict) else new.get(name, value)
        for name, value in values.items()
    }


def random_model(
    config: PretrainedConfig, device: torch.device, attention: str = "eager", *, seed: int = 0
) -> torch.nn.Module:
    """Build a random fp32 model with the given attention, in training mode. Sets torch's random state."""
    torch.manual_seed(seed)
    with torch.device(device):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=torch.float32, attn_implementation=attention
        )
    return model.train()


def _sizes(values: dict[str, Any]) -> list[tuple[str, int | list[int]]]:
    """Return the widths and numbers of heads of a configuration; a list where they differ by layer."""
    return [(name, values[name]) for name in (*WIDTHS, *HEADS) if values.get(name)]


def _divisor(values: dict[str, Any]) -> int:
    """Return the power of two to divide by: it grows until the width is at most 256 or a size is not divisible."""
    divisor = 1
    layers = values.get("per_layer_config", {}).values()
    sizes = [size for part in (values, *layers) for _, size in _sizes(part)]
    present = [number for size in sizes for number in (size if isinstance(size, list) else [size])]
    width = values.get("hidden_size", values.get("n_embd", 0))
    while width // divisor > 256 and all(value % (2 * divisor) == 0 for value in present):
        divisor *= 2
    return divisor


def _keep_layers(small: Any, divisor: int) -> None:
    values = small.to_dict()
    layers = next((values[name] for name in LAYERS if name in values), 0)
    if not layers:
        return
    kinds = getattr(small, "layer_types", None) or ["same"] * layers
    own = layers - (values.get("num_kv_shared_layers") or 0)  # those after them reuse keys and values
    keep = next(count for count in range(1, own + 1) if set(kinds[:count]) == set(kinds[:own]))
    reusing = sorted({kind: layer for layer, kind in enumerate(kinds) if layer >= own}.values())
    chosen = [*range(min(own, max(keep, 2))), *reusing]
    for name, value in values.items():
        # For settings that differ between layers, configurations hold a list with one entry per layer.
        if isinstance(value, list) and len(value) == layers:
            setattr(small, name, [getattr(small, name)[layer] for layer in chosen])
        elif name in LAYERS:
            setattr(small, name, len(chosen))
    if reusing:
        small.num_kv_shared_layers = len(reusing)
    if small.is_heterogeneous:
        overrides = {int(layer): dict(entry) for layer, entry in values["per_layer_config"].items()}
        for entry in overrides.values():
            entry.update({name: entry[name] // divisor for name, _ in _sizes(entry)})
        small.per_layer_config = {new: overrides[old] for new, old in enumerate(chosen) if old in overrides}
