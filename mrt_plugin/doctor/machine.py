"""Installed libraries, the device, and what `auto` means on this machine."""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import LlamaConfig

from mrt_plugin.attention import resolve_backend
from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.versions import Library, libraries, python_version

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """The device that a run on this machine uses, `cuda` or `cpu`."""

    kind: str
    name: str
    memory_gib: float | None
    """Memory of the first GPU; None on a CPU."""
    bf16: bool
    """Whether the hardware supports bfloat16 training."""


@dataclass(frozen=True)
class Machine:
    """Properties of this machine that matter for multi-response training."""

    python: str
    libraries: list[Library]
    device: Device
    prefix_backend: str
    """Meaning of `prefix_backend: auto` here for a model with attention only (Llama, Qwen3, Mistral ...)."""
    embedder: str
    """Default embedder of the diverse selectors."""
    sentence_transformers: bool
    """Whether `embedder: sentence-transformers` is available."""

    @property
    def problems(self) -> list[str]:
        """What is missing or unsupported, each with a remedy."""
        return [
            f"{library.name} {library.found or 'is missing'}: supported is {library.supported}. {library.remedy}"
            for library in self.libraries
            if not library.ok
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and the problems, for JSON."""
        libraries = [{**asdict(library), "ok": library.ok} for library in self.libraries]
        return {**asdict(self), "libraries": libraries, "problems": self.problems}


def inspect_machine() -> Machine:
    """Inspect this machine.

    Example:

    ```python
    machine = inspect_machine()
    print(machine.device.kind, machine.prefix_backend, machine.problems)
    ```
    """
    device, defaults = find_device(), MultiResponseOptions()
    backend = resolve_backend(
        defaults.prefix_backend, LlamaConfig(), device_type=device.kind, gradient_checkpointing=True
    )
    embeddings = find_spec("sentence_transformers") is not None
    return Machine(python_version(), libraries(), device, backend.name, defaults.embedder, embeddings)


def find_device() -> Device:
    """Return the first GPU, or the CPU with its number of threads."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device("cuda", properties.name, properties.total_memory / GIB, torch.cuda.is_bf16_supported(False))
    return Device("cpu", f"{torch.get_num_threads()} threads", None, False)
