"""Installed libraries, the device, and what `auto` means on this machine."""

import platform
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import LlamaConfig

from mrt_plugin.attention import resolve_backend
from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.versions import Library, libraries

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """The device that a run on this machine uses: `cuda`, its first GPU, or `cpu`."""

    kind: str
    name: str
    memory_gib: float | None
    bf16: bool


@dataclass(frozen=True)
class Machine:
    python: str
    libraries: list[Library]
    device: Device
    prefix_backend: str
    """Meaning of `prefix_backend: auto` here for a model with attention only (Llama, Qwen3, Mistral ...)."""
    embedder: str
    sentence_transformers: bool

    @property
    def problems(self) -> list[str]:
        bad = [library for library in self.libraries if not library.ok]
        return [f"{lib.name} {lib.found or 'is missing'}: supported is {lib.supported}. {lib.remedy}" for lib in bad]

    def as_dict(self) -> dict[str, Any]:
        libraries = [{**asdict(library), "ok": library.ok} for library in self.libraries]
        return {**asdict(self), "libraries": libraries, "problems": self.problems}


def inspect_machine() -> Machine:
    device, defaults = find_device(), MultiResponseOptions()
    backend = resolve_backend("auto", LlamaConfig(), device_type=device.kind)
    embeddings = find_spec("sentence_transformers") is not None
    return Machine(platform.python_version(), libraries(), device, backend.name, defaults.embedder, embeddings)


def find_device() -> Device:
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device("cuda", properties.name, properties.total_memory / GIB, torch.cuda.is_bf16_supported(False))
    return Device("cpu", f"{torch.get_num_threads()} threads", None, False)
