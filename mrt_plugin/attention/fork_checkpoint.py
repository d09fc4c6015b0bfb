"""Gradient checkpointing of forwards that fill a cache.

transformers drops the cache under gradient checkpointing, since a layer that runs again would fill it twice. Here a
decoder layer is checkpointed as a function of its inputs and of its own layer of the cache. It returns its output and
a new cache layer, and never changes a cache that it was given, so it may run again.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from mrt_plugin.attention.family import NotShareable
from mrt_plugin.attention.fork_cache import copy_cache, copy_layer


def recomputes(model: nn.Module) -> bool:
    """Return whether training runs parts of a model's forward again in the backward pass.

    transformers' checkpointing does, and torch's around the layers (FSDP's `activation_checkpointing`, Axolotl's
    `activation_offloading`).
    """
    return any(isinstance(module, CheckpointWrapper) or _is_on(module) for module in model.modules())


def refuse_other_checkpointing(model: nn.Module) -> None:
    """Refuse checkpointing that would drop the cache or fill it twice: all but transformers' own (`NotShareable`)."""
    found = None
    if any(isinstance(module, CheckpointWrapper) for module in model.modules()):
        found = "torch's CheckpointWrapper recomputes layers (FSDP's activation_checkpointing, activation_offloading)"
    elif recomputes(model):
        layers = _outermost(model)
        if not layers:
            found = f"the layers of {type(model).__name__} do not use transformers' GradientCheckpointingLayer"
        elif not all(_is_torchs(layer._gradient_checkpointing_func) for layer in layers):
            found = "another library's function recomputes its layers"
    if found is not None:
        raise NotShareable(
            f"prefix_backend=fork: {found}, and the cache would be dropped or filled twice. Use "
            "gradient_checkpointing=True without it, gradient_checkpointing=False, or layout=expanded."
        )


def _is_on(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))


def _is_torchs(function: Any) -> bool:
    return (function.func if isinstance(function, functools.partial) else function) is checkpoint


@contextmanager
def recomputed(model: nn.Module, cache: DynamicCache, rows: Tensor | None, *, keep: bool) -> Iterator[DynamicCache]:
    """Let one forward on the returned cache continue `cache`, with its decoder layers recomputed in the backward pass.

    Args:
        model: in training mode, with gradient checkpointing enabled.
        cache: what the forward continues. It is not changed, and must not be changed until the backward pass.
        rows: for each row of the forward's batch, its row in the cache; None if the cache is empty.
        keep: whether the returned cache is continued in its turn. If not, no state is kept.
    """
    layers = {layer: _cache_layers(layer, cache) for layer in _outermost(model)}
    inside = {number for own in layers.values() for number in own}
    continued = copy_cache(cache)
    for number, layer in enumerate(cache.layers):
        # Copied inside the recomputed layer, a cache layer has no copy per row in memory until the backward pass.
        if number not in inside:
            continued.layers[number] = copy_layer(layer, rows)
    before = {layer: vars(layer).get("forward") for layer in layers}
    try:
        for layer, own in layers.items():
            vars(layer)["forward"] = _checkpointed(layer, own, cache, continued, rows, keep)
        with _switched_off(model.modules()):
            yield continued
    finally:
        for layer, forward in before.items():
            if forward is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = forward


def _outermost(model: nn.Module) -> list[Any]:
    """Return the decoder layers that transformers would recompute, completely or in part.

    A layer is included for a part, since its other parts may use the same layer of the cache.
    """
    found: list[Any] = []
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if isinstance(module, GradientCheckpointingLayer):
            found += [module] if any(map(_is_on, module.modules())) else []
        else:
            waiting += module.children()
    return found


def _cache_layers(layer: nn.Module, cache: DynamicCache) -> list[int]:
    """Return the indices of the cache layers that a decoder layer fills."""
    indices = {vars(module).get("layer_idx") for module in layer.modules()}
    return sorted(index for index in indices if isinstance(index, int) and index < len(cache.layers))


def _checkpointed(
    layer: Any, own: list[int], cache: DynamicCache, continued: DynamicCache, rows: Tensor | None, keep: bool
) -> Any:
    """Return the layer's forward, recomputed in the backward pass. With `keep` it puts its states in `continued`."""
    forward = layer.forward

    def run(*args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        local = copy_cache(cache)
        for number in own:
            local.layers[number] = copy_layer(cache.layers[number], rows)

        def swap(value: Any) -> Any:
            return local if value is continued else value

        # In the backward pass checkpointing is on again, and layers inside this one would drop the cache.
        with _switched_off(layer.modules()):
            output = forward(*map(swap, args), **{name: swap(value) for name, value in kwargs.items()})
        return output, [local.layers[number] for number in own]

    def recomputed_forward(*args: Any, **kwargs: Any) -> Any:
        # Never reentrant, whatever was asked for: the numbers are the same. Reentrant checkpointing loses the gradient
        # of states in a cache, and gives DDP every gradient once per forward.
        function = functools.partial(run, **kwargs)
        output, states = layer._gradient_checkpointing_func(function, *args, use_reentrant=False)
        if keep:
            for number, state in zip(own, states, strict=True):
                continued.layers[number] = state
        return output

    return recomputed_forward


@contextmanager
def _switched_off(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch transformers' checkpointing off, at which it drops the cache."""
    on: list[Any] = [module for module in modules if _is_on(module)]
    try:
        for module in on:
            module.gradient_checkpointing = False
        yield
    finally:
        for module in on:
            module.gradient_checkpointing = True
