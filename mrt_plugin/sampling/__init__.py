"""Sampling: draw responses from an endpoint or a local model, without losing any that were drawn.

Names are imported on first use, since an endpoint needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrt_plugin.sampling.endpoint import Endpoint, EndpointError
    from mrt_plugin.sampling.local import LocalModel
    from mrt_plugin.sampling.prompts import read_prompts
    from mrt_plugin.sampling.run import Unfinished, sample_pool
    from mrt_plugin.sampling.settings import SampleReport, SamplingSettings

_HOMES = {
    "Endpoint": "endpoint",
    "EndpointError": "endpoint",
    "LocalModel": "local",
    "SampleReport": "settings",
    "SamplingSettings": "settings",
    "Unfinished": "run",
    "read_prompts": "prompts",
    "sample_pool": "run",
}

__all__ = [
    "Endpoint",
    "EndpointError",
    "LocalModel",
    "SampleReport",
    "SamplingSettings",
    "Unfinished",
    "read_prompts",
    "sample_pool",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"mrt_plugin.sampling.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mrt_plugin.sampling' has no attribute {name!r}")
