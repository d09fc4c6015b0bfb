"""Draw responses from an endpoint or a local model. Drawn responses survive a stopped run.

Names are imported on first use: the options need neither torch nor datasets, and an endpoint needs no torch.
"""

from typing import TYPE_CHECKING

from mrt_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from mrt_plugin.endpoint import Endpoint, EndpointError, SamplingSettings, Unfinished
    from mrt_plugin.sampling.local import LocalModel
    from mrt_plugin.sampling.run import sample_pool

__all__ = ["Endpoint", "EndpointError", "LocalModel", "SamplingSettings", "Unfinished", "sample_pool"]

__getattr__ = lazy_names(
    __name__,
    {
        "Endpoint": "mrt_plugin.endpoint",
        "EndpointError": "mrt_plugin.endpoint",
        "LocalModel": ".local",
        "SamplingSettings": "mrt_plugin.endpoint",
        "Unfinished": "mrt_plugin.endpoint",
        "sample_pool": ".run",
    },
)
