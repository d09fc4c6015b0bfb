"""Draw responses from an endpoint or a local model. Drawn responses survive a stopped run.

Names are imported on first use: the options need neither torch nor datasets, and an endpoint needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrt_plugin.sampling.endpoint import Endpoint, EndpointError
    from mrt_plugin.sampling.local import LocalModel
    from mrt_plugin.sampling.options import SamplingSettings
    from mrt_plugin.sampling.prompts import read_prompts
    from mrt_plugin.sampling.run import Unfinished, sample_pool
    from mrt_plugin.sampling.settings import SampleReport

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
_FILES = ("endpoint", "endpoint", "local", "settings", "options", "run", "prompts", "run")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"mrt_plugin.sampling.{_FILES[__all__.index(name)]}"), name)
    raise AttributeError(f"module 'mrt_plugin.sampling' has no attribute {name!r}")
