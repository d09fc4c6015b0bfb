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

__getattr__ = lazy_names(
    __name__,
    {
        "Endpoint": ".endpoint",
        "EndpointError": ".endpoint",
        "LocalModel": ".local",
        "SampleReport": ".settings",
        "SamplingSettings": ".options",
        "Unfinished": ".run",
        "read_prompts": ".prompts",
        "sample_pool": ".run",
    },
)
