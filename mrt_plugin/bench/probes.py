"""Observers of one optimizer step: its peak memory, and where its time goes."""

import re
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


class PeakMemory:
    """Measures the peak memory of one optimizer step in requested bytes: `torch.cuda.max_memory_allocated`, or on a
    CPU the peak of the running sum of the allocations that PyTorch's profiler records."""

    def __init__(self) -> None:
        self.resting = self.step = 0
        """Bytes of weights and optimizer state, and additional bytes at the peak of the step."""
        self._profile: profile | None = None

    def start(self, model: Any, optimizer: Any) -> None:
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.resting = torch.cuda.memory_allocated()
            return
        kept = [*model.parameters(), *model.buffers()]
        for state in optimizer.state.values():
            kept += [value for value in state.values() if isinstance(value, torch.Tensor)]
        self.resting = sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}.values())
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()

    def stop(self) -> None:
        if self._profile is None:
            self.step = torch.cuda.max_memory_allocated() - self.resting
            return
        self._profile.__exit__(None, None, None)
        recorded: Any = self._profile.profiler
        events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
        held = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            self.step = max(self.step, held)
        self._profile = None


LINEAR, ATTENTION, HEAD, OPTIMIZER, OTHER, TRAINER = PIECES = (
    "linear layers",
    "attention",
    "output head and loss",
    "optimizer and clipping",
    "other operations",
    "Python and the trainer",
)
"""`other operations` are norms, rotary embeddings, activations and copies. `Python and the trainer` is the time
outside of operations: data loading, collating, the model's Python code, autograd, logging."""

_NAMES = (
    (OPTIMIZER, re.compile(r"Optimizer\.|aten::(_foreach_|linalg_vector_norm|_fused_adam)")),
    (ATTENTION, re.compile(r"aten::_?(scaled_dot_product|flash|efficient|cudnn)_?\w*attention")),
    (ATTENTION, re.compile(r"mrt_plugin::|flash_attn")),
    (ATTENTION, re.compile(r"aten::(bmm|baddbmm|_softmax|_softmax_backward_data)$")),  # without a fused kernel (eager)
    (LINEAR, re.compile(r"bitsandbytes::")),
)


class StepProfile:
    """Observes one optimizer step and sorts its operations (on CUDA: their kernels) into `PIECES`."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary  # the rows of the output head, which identify its operations
        self.seconds: dict[str, float] = {}
        """Seconds by piece. They add up to the step's time under the profiler, which slows small operations down."""

    def start(self, model: Any, optimizer: Any) -> None:
        self._on_gpu = model.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        self._profile = profile(activities=activities, record_shapes=True)
        self._profile.__enter__()
        self._began = time.perf_counter()

    def stop(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        wall = time.perf_counter() - self._began
        self._profile.__exit__(None, None, None)
        found: dict[str, float] = defaultdict(float)
        for event in self._profile.events() or []:
            if event.cpu_parent is None and event.device_type == torch.autograd.DeviceType.CPU:
                self._sort(event, found)
        found[TRAINER] += wall - sum(found.values())
        self.seconds = {piece: found[piece] for piece in PIECES}
        del self._profile

    def _sort(self, event: Any, found: dict[str, float]) -> None:
        piece = self._piece(event)
        if piece is not None:
            found[piece] += (event.device_time_total if self._on_gpu else event.cpu_time_total) / 1e6
            return
        own = (event.self_device_time_total if self._on_gpu else event.self_cpu_time_total) / 1e6
        found[OTHER if event.name.startswith("aten::") else TRAINER] += own
        for child in event.cpu_children:
            self._sort(child, found)

    def _piece(self, event: Any) -> str | None:
        """Return the piece of the event and of everything inside it, or None if it has no single piece."""
        if event.name.startswith("enumerate(DataLoader)"):
            return TRAINER
        for piece, names in _NAMES:
            if names.match(event.name):
                return piece
        if event.name.startswith("aten::"):
            if any(self.vocabulary in shape for shape in event.input_shapes if isinstance(shape, list)):
                return HEAD
            if event.name in ("aten::linear", "aten::mm", "aten::addmm"):
                return LINEAR
        return None


def losses(ours: Mapping[str, float], theirs: Mapping[str, float], token_ratio: float) -> dict[str, float]:
    """Return the share of the token ratio q that each piece loses: (ours - theirs / q) / our step, in seconds. The sum
    over the pieces is 1 - fraction reached."""
    step = sum(ours.values())
    return {piece: round((ours[piece] - theirs[piece] / token_ratio) / step, 12) for piece in ours}
