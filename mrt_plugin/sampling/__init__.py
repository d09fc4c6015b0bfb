"""Draw responses from an endpoint or a local model. Drawn responses survive a stopped run.

An endpoint needs no torch, so `LocalModel` is imported on first use.
"""

from typing import TYPE_CHECKING, Any

from mrt_plugin.sampling.endpoint import Endpoint, EndpointError
from mrt_plugin.sampling.prompts import read_prompts
from mrt_plugin.sampling.run import Unfinished, sample_pool
from mrt_plugin.sampling.settings import SampleReport, SamplingSettings

if TYPE_CHECKING:
    from mrt_plugin.sampling.local import LocalModel

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
    if name != "LocalModel":
        raise AttributeError(f"module 'mrt_plugin.sampling' has no attribute {name!r}")
    from mrt_plugin.sampling.local import LocalModel

    return LocalModel
