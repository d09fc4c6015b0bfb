"""Draw responses from an endpoint or a local model. Drawn responses survive a stopped run.

Names are imported on first use: the options need neither torch nor datasets, and an endpoint needs no torch.
"""

from typing import TYPE_CHECKING

from mrt_plugin.lazy import lazy_names

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
__getattr__ = lazy_names(__name__, {name: f".{file}" for name, file in zip(__all__, _FILES, strict=True)})
