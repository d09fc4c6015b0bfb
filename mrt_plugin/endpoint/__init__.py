"""Ask OpenAI-compatible endpoints, with retries, a pace and a journal. Sampling and judges use it."""

from typing import TYPE_CHECKING

from mrt_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from mrt_plugin.endpoint.client import Endpoint, EndpointError
    from mrt_plugin.endpoint.jobs import EndpointOptions, SamplingSettings, Unfinished

__all__ = ["Endpoint", "EndpointError", "EndpointOptions", "SamplingSettings", "Unfinished"]

__getattr__ = lazy_names(
    __name__,
    {
        "Endpoint": ".client",
        "EndpointError": ".client",
        "EndpointOptions": ".jobs",
        "SamplingSettings": ".jobs",
        "Unfinished": ".jobs",
    },
)
