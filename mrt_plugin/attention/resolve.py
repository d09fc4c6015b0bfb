"""Choose the shared-prefix backend for a model."""

from typing import Any

import torch

from mrt_plugin.attention.backend import Backend
from mrt_plugin.attention.family import CHUNKED, Family, NotShareable, read_family
from mrt_plugin.attention.varlen import CUDAFlash
from mrt_plugin.extension import load_extension
from mrt_plugin.options import PREFIX_BACKENDS, check_prefix_backend


def resolve_backend(requested: str, model_config: Any, *, device_type: str) -> Backend:
    """Return the shared-prefix backend for a model.

    `auto` chooses `sdpa` for families whose layers are all attention, except families with chunked layers. On CUDA it
    chooses `flex` instead where no fused kernel of `sdpa` fits: soft-capped scores, old cards, large heads on
    consumer cards. It chooses `fork` for all other families. A user's own class is given as `package.module:name` or
    `file.py:name`. `NotShareable` says what to do where the requested backend is impossible.
    """
    check_prefix_backend(requested)
    name = _fastest(read_family(model_config), device_type) if requested == "auto" else requested
    if name == "flex" and device_type == "cpu":
        raise NotShareable("prefix_backend=flex has no backward pass on CPU: use prefix_backend=sdpa.")
    backend: Backend = load_extension(PREFIX_BACKENDS.get(name, name))(model_config)
    return backend


def _fastest(family: Family, device_type: str) -> str:
    if family.stateful or CHUNKED in family.kinds:
        return "fork"
    fused = family.softcap is None
    if fused and family.head_size is not None and torch.cuda.is_available():
        fused = CUDAFlash.fits(family.head_size, torch.cuda.get_device_capability())
    return "flex" if device_type == "cuda" and not fused else "sdpa"
