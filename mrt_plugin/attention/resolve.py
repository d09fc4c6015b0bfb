"""Choose the shared-prefix backend for a model."""

from typing import Any

import torch

from mrt_plugin.attention.backend import Backend
from mrt_plugin.attention.family import CHUNKED, Family, NotShareable, read_family
from mrt_plugin.attention.fork import NO_CHECKPOINTING
from mrt_plugin.attention.varlen import CUDAFlash
from mrt_plugin.extension import load_extension
from mrt_plugin.options import PREFIX_BACKENDS, check_prefix_backend


def resolve_backend(requested: str, model_config: Any, *, device_type: str, gradient_checkpointing: bool) -> Backend:
    """Return the shared-prefix backend for a model.

    `auto` chooses `sdpa` for families whose layers are all attention, except families with chunked layers. On CUDA it
    chooses `flex` instead where no fused kernel of `sdpa` fits: soft-capped scores, old cards, large heads on
    consumer cards. It chooses `fork` for all other families.

    Args:
        requested: a backend's name, `auto`, or a user's own class as `package.module:name` or `file.py:name`.
        model_config: the model's configuration, from which the backend is built.
        device_type: the device of the training: `cpu`, `cuda`, ...
        gradient_checkpointing: whether activations are recomputed in the backward pass.

    Raises:
        NotShareable: (a ValueError) if the requested backend is impossible or, with `auto`, every backend is. The
            message says what to do.
        ValueError: if there is no such backend.

    Example:

    >>> from transformers import LlamaConfig
    >>> resolve_backend("auto", LlamaConfig(), device_type="cpu", gradient_checkpointing=True).name
    'sdpa'
    """
    check_prefix_backend(requested)
    name = _fastest(read_family(model_config), device_type) if requested == "auto" else requested
    if name == "fork" and gradient_checkpointing:
        raise NotShareable(NO_CHECKPOINTING)
    if name == "flex" and device_type == "cpu":
        raise NotShareable("prefix_backend=flex has no backward pass on CPU: use prefix_backend=sdpa.")
    backend: Backend = load_extension(PREFIX_BACKENDS.get(name, name))(model_config)
    return backend


def _fastest(family: Family, device_type: str) -> str:
    if family.stateful or CHUNKED in family.kinds:
        return "fork"
    return "flex" if device_type == "cuda" and not _fused_on_cuda(family) else "sdpa"


def _fused_on_cuda(family: Family) -> bool:
    if family.softcap is not None:
        return False
    if family.head_size is None or not torch.cuda.is_available():
        return True
    return CUDAFlash.fits(family.head_size, torch.cuda.get_device_capability())
