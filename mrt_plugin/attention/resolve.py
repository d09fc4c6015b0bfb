"""Which backend a model gets."""

from typing import Any

from mrt_plugin.attention.backend import Backend
from mrt_plugin.attention.dense import DenseBackend
from mrt_plugin.attention.family import NotShareable, read_family
from mrt_plugin.attention.two_part import TwoPartBackend
from mrt_plugin.options import PrefixBackend


def resolve_backend(
    requested: PrefixBackend, model_config: Any, *, device_type: str, gradient_checkpointing: bool
) -> Backend:
    """The shared-prefix backend for a model.

    Args:
        requested: a backend by name, or `auto` for the fastest one that is exact for the model.
        model_config: the model's configuration.
        device_type: where it trains: `cpu`, `cuda`, ...
        gradient_checkpointing: whether activations are recomputed in the backward pass.

    Raises:
        NotShareable: (a ValueError) if the request, or with `auto` every backend, is impossible; says what to do.
    """
    family = read_family(model_config)
    if requested == "dense":
        return DenseBackend(model_config)
    if requested in ("auto", "sdpa"):
        return TwoPartBackend(model_config)
    raise NotShareable(f"prefix_backend={requested} is not available for {family.model_type}: use auto.")
