"""Peak memory of one optimizer step.

On CUDA this is `torch.cuda.max_memory_allocated` over the step. On a CPU, PyTorch's profiler records every allocation
and release of the CPU allocator. The peak of their running sum is what the step needs in addition to the weights and
the optimizer's state, which are counted separately. Both methods count requested bytes. Unlike the resident set
size, they do not depend on other programs, on memory that the allocator keeps for later, or on what an earlier arm
touched. Neither method sees memory that a kernel takes outside the allocator.
"""

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


class PeakMemory:
    """Observes one optimizer step (`mrt_plugin.bench.turn.Probe`).

    Example:

    ```python
    probe = PeakMemory()
    take_turn(arm, setting, data, size, steps=2, probe=probe)
    print(probe.resting, probe.step)
    ```
    """

    def __init__(self) -> None:
        self.resting = 0
        """Bytes of weights and optimizer state, in use before and after the step."""
        self.step = 0
        """Additional bytes at the peak: activations, gradients, logits, the batch."""
        self._profile: profile | None = None

    def start(self, model: Any, optimizer: Any) -> None:
        """Measure the memory in use, and start recording."""
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
        """Stop recording and find the peak."""
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
