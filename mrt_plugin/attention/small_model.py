"""A small random model of a given configuration, with layers of every kind, for the proof's first part."""

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from mrt_plugin.attention.family import read_family
from mrt_plugin.attention.length_rope import lift_thresholds

WINDOW = 8
"""The window and chunk of the small model: short rows then already reach beyond it."""

LONGEST = 8 * WINDOW
"""Tokens that the small model's sequences have at most."""

VOCABULARY = 256

WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "intermediate_size_mlp",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "word_embed_proj_dim",
    "ffn_dim",
    "n_embd",
    "n_inner",
)
HEADS = (
    "num_attention_heads",
    "num_key_value_heads",
    "n_head",
    "num_heads",
    "n_groups",
    "mamba_n_heads",
    "mamba_n_groups",
    "linear_num_key_heads",
    "linear_num_value_heads",
)
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
LAYERS = ("num_hidden_layers", "n_layer")


def small_config(config: PretrainedConfig) -> PretrainedConfig:
    """The text configuration with few layers, narrow, with few experts, a short window and no dropout.

    Every width and number of heads is divided by the same power of two, so that their ratios, head sizes and grouped
    keys stay. The first layers are kept, as many as it takes to have every kind, and one of each kind that reuses
    another layer's keys and values.
    """
    small = copy.deepcopy(config.get_text_config())
    values = {name: value for name, value in small.to_dict().items() if isinstance(value, int)}
    divisor = _divisor(small.to_dict())
    for name, value in _sizes(small.to_dict()):
        setattr(small, name, [size // divisor for size in value] if isinstance(value, list) else value // divisor)
    for name in EXPERTS:
        if values.get(name):
            setattr(small, name, min(values[name], 4))
    for name in ("num_experts_per_tok", "top_k_experts"):
        if values.get(name):
            setattr(small, name, min(values[name], 2))
    _keep_layers(small, divisor)
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        if values.get(name):
            setattr(small, name, VOCABULARY)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(small, name, None)
    for name, value in small.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(small, name, 0.0)
    family = read_family(small)
    if family.window is not None:
        small.sliding_window = WINDOW
    if family.chunk is not None:
        small.attention_chunk_size = WINDOW
    if family.softcap is not None:
        small.attn_logit_softcapping = 1.0  # low enough to matter to random scores
    lift_thresholds(small, LONGEST)  # the pairs of a run are on one side of them
    # Weights large enough for attention to be far from uniform, as it is in a trained model.
    for name in ("initializer_range", "init_std"):
        if name in small.to_dict():
            setattr(small, name, 1.5 * _width(small) ** -0.5)
    if "output_router_logits" in small.to_dict():
        small.output_router_logits = False
    if "quantization_config" in small.__dict__:
        del small.quantization_config
    small.dtype = torch.float32
    return small


def random_model(config: PretrainedConfig, device: torch.device, *, seed: int = 0) -> torch.nn.Module:
    """A random fp32 model with `eager` attention, in training mode. Sets torch's random state."""
    torch.manual_seed(seed)
    with torch.device(device):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=torch.float32, attn_implementation="eager"
        )
    return model.train()


def _width(config: Any) -> int:
    values = config.to_dict()
    width: int = values["n_embd"] if "n_embd" in values else values["hidden_size"]
    return width


def _sizes(values: dict[str, Any]) -> list[tuple[str, int | list[int]]]:
    """The widths and numbers of heads among a configuration's values; a list where they differ by layer."""
    return [(name, values[name]) for name in (*WIDTHS, *HEADS) if values.get(name)]


def _divisor(values: dict[str, Any]) -> int:
    """The power of two to divide by: until the width is at most 256, or a number no longer divides."""
    divisor = 1
    layers = values.get("per_layer_config", {}).values()
    sizes = [size for part in (values, *layers) for _, size in _sizes(part)]
    present = [number for size in sizes for number in (size if isinstance(size, list) else [size])]
    while values.get("hidden_size", values.get("n_embd", 0)) // divisor > 256 and all(
        value % (2 * divisor) == 0 for value in present
    ):
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
        # Configurations hold one list entry per layer for what differs between layers.
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
