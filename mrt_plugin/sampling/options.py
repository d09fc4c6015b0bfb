"""Define the options of sampling from a local model. Those of an endpoint are in the room `endpoint`."""

from dataclasses import dataclass
from typing import Any, Protocol

from mrt_plugin.endpoint.jobs import Checked, SamplingTask
from mrt_plugin.endpoint.jobs import EndpointOptions as EndpointOptions
from mrt_plugin.endpoint.jobs import SamplingSettings as SamplingSettings
from mrt_plugin.options import PromptFormat, option


@dataclass(kw_only=True)
class LocalOptions(Checked):
    """How a local model is loaded and asked."""

    load_in_4bit: bool = option(False, "Load a local model in 4 bit, as QLoRA trains it.")
    batch_size: int = option(32, "Responses that a local model draws at a time.", ge=1)
    prompt_format: PromptFormat = option("auto", "Local model: chat, plain, or auto (chat if it has a template).")


class Sampler(Protocol):
    def identity(self) -> dict[str, Any]:
        """Return what the draws depend on besides the settings."""

    def draw(self, task: SamplingTask) -> None:
        """Draw the missing responses of each job, and record every reply."""
