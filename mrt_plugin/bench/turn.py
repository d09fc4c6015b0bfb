"""Run one turn: build an arm's trainer on the model, train the same steps as every arm, and restore the model."""

import gc
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import PrinterCallback, TrainerCallback

from mrt_plugin.attention.family import set_text_attention, text_attention
from mrt_plugin.bench.arms import Arm, Data, build_trainer


@dataclass(frozen=True)
class Setting:
    """Settings that all turns of a benchmark share."""

    model: Any
    tokenizer: Any
    bf16: bool
    gradient_checkpointing: bool = False

    @property
    def cpu(self) -> bool:
        """Return whether the model is on the CPU."""
        return bool(self.model.device.type == "cpu")


@dataclass
class Turn:
    """Results of one turn."""

    seconds: list[float] = field(default_factory=list)
    """Seconds of every optimizer step except the first."""
    loss: float = 0.0
    """Mean loss over all steps, including the first, in nats per token."""
    gradient_norm: float = 0.0
    """Gradient norm at the last step."""


class Probe(Protocol):
    """An observer of one optimizer step."""

    def start(self, model: Any, optimizer: Any) -> None:
        """Called right after the previous step."""

    def stop(self) -> None:
        """Called right after the step."""


class _StepEnds(TrainerCallback):
    """Records when optimizer steps end. A probe observes the second step.

    The time between two ends covers loading, collating, forward, backward, update and bookkeeping.
    """

    def __init__(self, probe: Probe | None) -> None:
        self.ends: list[float] = []
        self.probe = probe

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.probe is not None and len(self.ends) == 1:
            self.probe.stop()
        self.ends.append(time.perf_counter())
        if self.probe is not None and len(self.ends) == 1:
            self.probe.start(kwargs["model"], kwargs["optimizer"])


def take_turn(arm: Arm, setting: Setting, data: Data, size: int, *, steps: int, probe: Probe | None = None) -> Turn:
    """Train `steps` steps from the model's current weights, then restore these weights.

    The first step is a warm-up: it allocates the optimizer's state and is not timed.

    Args:
        size: pairs (TRL) or groups (ours) per micro-batch.
        steps: at least 2; the data must have that many.
        probe: observes the second step.

    Raises:
        torch.OutOfMemoryError: if the device is too small.
    """
    ends = _StepEnds(probe)
    with _unchanged(setting.model), _quietly(), tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            arm,
            setting.model,
            setting.tokenizer,
            data,
            size,
            steps=steps,
            bf16=setting.bf16,
            cpu=setting.cpu,
            gradient_checkpointing=setting.gradient_checkpointing,
            output_dir=folder,
            callbacks=[ends],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
            log = next(entry for entry in trainer.state.log_history if "loss" in entry)
        finally:
            del trainer
    seconds = [after - before for before, after in zip(ends.ends, ends.ends[1:], strict=False)]
    return Turn(seconds, float(log["loss"]), float(log["grad_norm"]))


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress log lines, which every turn would repeat."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Restore what trainers change in a model: weights, forward method, attention, caching, gradients."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().cpu().clone() for name, weight in trained.items()}
    causal_model = model.get_base_model() if hasattr(model, "peft_config") else model
    attention = text_attention(causal_model)
    use_cache = causal_model.config.use_cache
    methods = ("forward", "_original_forward")  # set by TRL's fused heads and by accelerate's autocast
    attributes = [
        (part, {name: vars(part)[name] for name in methods if name in vars(part)}) for part in (model, causal_model)
    ]
    try:
        yield
    finally:
        for part, kept in attributes:
            for name in methods:
                vars(part).pop(name, None)
            vars(part).update(kept)
        set_text_attention(causal_model, attention)
        causal_model.config.use_cache = use_cache
        with torch.no_grad():
            for name, weight in trained.items():
                weight.grad = None
                weight.copy_(before[name])
        gc.collect()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
