"""What is installed, what it would run on, and what `auto` means here."""

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
    """What a run on this machine computes on."""

    kind: str
    """`cuda` or `cpu`."""
    name: str
    memory_gib: float | None
    """Of the first GPU; None on a CPU."""
    bf16: bool
    """Whether bfloat16 training is supported in hardware."""


@dataclass(frozen=True)
class Machine:
    """This machine, as multi-response training sees it."""

    python: str
    libraries: list[Library]
    device: Device
    prefix_backend: str
    """What `prefix_backend: auto` is for a model with attention only (Llama, Qwen3, Mistral ...) on this device."""
    embedder: str
    """What the diverse selectors use unless told otherwise."""
    sentence_transformers: bool
    """Whether `embedder: sentence-transformers` can be asked for."""

    @property
    def problems(self) -> list[str]:
        """What does not fit, each with its remedy; empty if all is well."""
        return [
            f"{library.name} {library.found or 'is missing'}: supported is {library.supported}. {library.remedy}"
            for library in self.libraries
            if not library.ok
        ]

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            **asdict(self),
            "libraries": [{**asdict(library), "ok": library.ok} for library in self.libraries],
            "problems": self.problems,
        }


def inspect_machine() -> Machine:
    """Look at this machine.

    Example:

    ```python
    machine = inspect_machine()
    print(machine.device.kind, machine.prefix_backend, machine.problems)
    ```
    """
    device = find_device()
    backend = resolve_backend(
        MultiResponseOptions().prefix_backend, LlamaConfig(), device_type=device.kind, gradient_checkpointing=True
    )
    return Machine(
        python=python_version(),
        libraries=libraries(),
        device=device,
        prefix_backend=backend.name,
        embedder=MultiResponseOptions().embedder,
        sentence_transformers=find_spec("sentence_transformers") is not None,
    )


def find_device() -> Device:
    """The first GPU, or the CPU with its number of threads."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device("cuda", properties.name, properties.total_memory / GIB, torch.cuda.is_bf16_supported(False))
    return Device("cpu", f"{torch.get_num_threads()} threads", None, False)
