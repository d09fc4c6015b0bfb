"""Measure where the time of an optimizer step goes, and how much of the token ratio each piece loses.

Let q be the token ratio. In a step that lost nothing, every piece would take 1/q of its time in a step on expanded
rows. A piece's time beyond that is lost. The losses of all pieces add up to the missing part of the speed-up:

    1 - fraction reached = sum over pieces of (ours - theirs / q) / our step

Here `ours` and `theirs` are a piece's time in our step and in the step on expanded rows.
"""

import re
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

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
    (
        ATTENTION,
        re.compile(r"aten::_?(scaled_dot_product|flash|efficient|cudnn)_?\w*attention|mrt_plugin::|flash_attn"),
    ),
    (ATTENTION, re.compile(r"aten::(bmm|baddbmm|_softmax|_softmax_backward_data)$")),  # without a fused kernel (eager)
    (LINEAR, re.compile(r"bitsandbytes::")),
)


class StepProfile:
    """Observes one optimizer step (`mrt_plugin.bench.turn.Probe`) and sorts its operations into `PIECES`.

    On CUDA the time of an operation is that of its kernels.
    """

    def __init__(self, vocabulary: int) -> None:
        """Set `vocabulary`, the number of rows of the output head. It identifies the head's operations."""
        self.vocabulary = vocabulary
        self.seconds: dict[str, float] = {}
        """Seconds by piece. They add up to the step's time under the profiler, which slows small operations down."""

    def start(self, model: Any, optimizer: Any) -> None:
        """Start recording."""
        self._on_gpu = model.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        self._profile = profile(activities=activities, record_shapes=True)
        self._profile.__enter__()
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Stop recording and sort the operations."""
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
    """Return the share of the token ratio that each piece loses. It is negative if a piece gains more than the ratio.

    Example:

    >>> losses({"attention": 0.5, "linear": 0.5}, {"attention": 0.8, "linear": 1.0}, token_ratio=2.0)
    {'attention': 0.1, 'linear': 0.0}
    """
    step = sum(ours.values())
    return {piece: round((ours[piece] - theirs[piece] / token_ratio) / step, 12) for piece in ours}
