"""Choose the shared-prefix backend for a model."""

from collections.abc import Callable
from typing import Any

import torch

from mrt_plugin.attention.backend import Backend
from mrt_plugin.attention.dense import DenseBackend
from mrt_plugin.attention.family import CHUNKED, Family, NotShareable, read_family
from mrt_plugin.attention.flex import FlexBackend
from mrt_plugin.attention.fork import NO_CHECKPOINTING, ForkBackend
from mrt_plugin.attention.two_part import TwoPartBackend
from mrt_plugin.attention.varlen import CUDAFlash
from mrt_plugin.options import PrefixBackend


def resolve_backend(
    requested: PrefixBackend, model_config: Any, *, device_type: str, gradient_checkpointing: bool
) -> Backend:
    """Return the shared-prefix backend for a model.

    `auto` chooses `sdpa` for families whose layers are all attention, except families with chunked layers. On CUDA it
    chooses `flex` instead where no fused kernel of `sdpa` fits: soft-capped scores, old cards, large heads on
    consumer cards. It chooses `fork` for all other families.

    Args:
        requested: a backend's name, or `auto`.
        model_config: the model's configuration.
        device_type: the device of the training: `cpu`, `cuda`, ...
        gradient_checkpointing: whether activations are recomputed in the backward pass.

    Raises:
        NotShareable: (a ValueError) if the requested backend is impossible or, with `auto`, every backend is. The
            message says what to do.

    Example:

    >>> from transformers import LlamaConfig
    >>> resolve_backend("auto", LlamaConfig(), device_type="cpu", gradient_checkpointing=True).name
    'sdpa'
    """
    family = read_family(model_config)
    name = requested
    if name == "auto":
        if family.stateful or CHUNKED in family.kinds:
            name = "fork"
        elif device_type == "cuda" and not _fused_on_cuda(family):
            name = "flex"
        else:
            name = "sdpa"
    if name == "fork" and gradient_checkpointing:
        raise NotShareable(NO_CHECKPOINTING)
    if name == "flex" and device_type == "cpu":
        raise NotShareable("prefix_backend=flex has no backward pass on CPU: use prefix_backend=sdpa.")
    backends: dict[str, Callable[[Any], Backend]] = {
        "dense": DenseBackend,
        "sdpa": TwoPartBackend,
        "fork": ForkBackend,
        "flex": FlexBackend,
    }
    if name not in backends:
        raise ValueError(f"prefix_backend={name!r} is unknown: choose one of auto, {', '.join(backends)}.")
    return backends[name](model_config)


def _fused_on_cuda(family: Family) -> bool:
    if family.softcap is not None:
        return False
    if family.head_size is None or not torch.cuda.is_available():
        return True
    return CUDAFlash.fits(family.head_size, torch.cuda.get_device_capability())
