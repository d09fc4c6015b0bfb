"""The cache of the `fork` backend: made from a configuration, and copied for what continues it."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import (
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from mrt_plugin.attention.family import NotShareable


class KeptStates(LinearAttentionLayer):  # type: ignore[misc]
    """A linear-attention cache layer that assigns its states.

    transformers copies the states into one buffer in place. Autograd rejects this, because the backward pass still
    needs the prompt's states.
    """

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """Append to the last `conv_kernel_size` inputs, and return all inputs that the convolution may read."""
        kernel = conv_states.shape[-1] if conv_kernel_size is None else conv_kernel_size
        if self.has_previous_state[state_idx]:
            full = torch.cat([self.conv_states[state_idx], conv_states], dim=-1)  # type: ignore[list-item]
        else:
            full = torch.nn.functional.pad(conv_states, (max(kernel - conv_states.shape[-1], 0), 0))
        self.dtype, self.device = conv_states.dtype, conv_states.device  # type: ignore[assignment]
        self.conv_kernel_size[state_idx] = kernel
        self.conv_states[state_idx] = full[..., -kernel:]
        self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True
        return full

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Replace the state."""
        self.device = recurrent_states.device  # type: ignore[assignment]
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states


class KeptStatesAndKeys(KeptStates, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """The same beside full attention in one layer (Falcon-H1, Zamba 2)."""


class KeptStatesAndWindow(KeptStates, LinearAttentionAndSlidingWindowAttentionLayer):  # type: ignore[misc]
    """The same beside attention in a window (Inkling)."""


KEPT = {
    LinearAttentionLayer: KeptStates,
    LinearAttentionAndFullAttentionLayer: KeptStatesAndKeys,
    LinearAttentionAndSlidingWindowAttentionLayer: KeptStatesAndWindow,
}

NO_STATE = ("moe", "mlp")
"""Kinds of layer without any memory. Some releases of transformers give them a cache layer that stays empty."""

RESTARTS = "the scan of its Mamba 1 layers starts from zero, or from a cached state for a single token only"
REASONS = {
    "mamba": RESTARTS,
    "falcon_mamba": RESTARTS,
    "jamba": RESTARTS,
    "zamba": RESTARTS,
    "minimax": "its cache is a class of its own, and it continues one token after the other",
}
"""Why transformers' implementation of a model type cannot continue a cached prompt."""


def new_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a model, or refuse a model whose cache cannot be forked (`NotShareable`)."""
    text = config.get_text_config()
    if text.model_type in REASONS:
        raise NotShareable(
            f"prefix_backend=fork: transformers cannot continue a cached prompt of {text.model_type}: "
            f"{REASONS[text.model_type]}. Use layout=expanded."
        )
    cache = DynamicCache(config=text)
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer):
            if type(layer) not in KEPT:
                raise NotShareable(
                    f"prefix_backend=fork: {text.model_type} keeps its state in a {type(layer).__name__}, which it "
                    "cannot fork. Use layout=expanded."
                )
            layer.__class__ = KEPT[type(layer)]  # type: ignore[assignment]
    return cache


def copy_cache(cache: DynamicCache) -> DynamicCache:
    """Return a cache with the same layers. Layers set in the copy do not change the original."""
    copied = copy.copy(cache)
    copied.layers = list(cache.layers)
    return copied


def copy_layer(layer: Any, rows: Tensor | None) -> Any:
    """Return a copy of a cache layer with the given rows of its batch, or with all. The layer is not changed."""
    copied = copy.copy(layer)
    for name, value in vars(copied).items():
        if isinstance(value, list | dict):
            setattr(copied, name, copy.copy(value))
    if rows is not None:
        copied.reorder_cache(rows)
    return copied


def is_filled(cache: DynamicCache, config: Any) -> bool:
    """Return whether a forward filled every layer of the cache that its model has a memory for."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or [None] * len(cache.layers)
    return all(
        all(layer.has_previous_state.values()) if isinstance(layer, LinearAttentionLayer) else layer.is_initialized  # type: ignore[union-attr]
        for layer, kind in zip(cache.layers, kinds, strict=False)
        if kind not in NO_STATE
    )
