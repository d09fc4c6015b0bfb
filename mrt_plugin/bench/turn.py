"""One turn: an arm's trainer is built on the model, trains the same steps as every other, and leaves no trace."""

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

from mrt_plugin.attention.implementation import set_text_attention, text_attention
from mrt_plugin.bench.arms import Arm, Data, build_trainer


@dataclass(frozen=True)
class Setting:
    """What all turns of a benchmark have in common."""

    model: Any
    tokenizer: Any
    bf16: bool
    gradient_checkpointing: bool = False

    @property
    def cpu(self) -> bool:
        """Whether the model is on the CPU."""
        return bool(self.model.device.type == "cpu")


@dataclass
class Turn:
    """What one turn found."""

    seconds: list[float] = field(default_factory=list)
    """Of every optimizer step but the first."""
    loss: float = 0.0
    """Mean over the steps, the first included, in nats per token."""
    gradient_norm: float = 0.0
    """At the last step."""


class Probe(Protocol):
    """Something that looks at one optimizer step."""

    def start(self, model: Any, optimizer: Any) -> None:
        """Called right after the step before it."""

    def stop(self) -> None:
        """Called right after the step."""


class _StepEnds(TrainerCallback):
    """The times between the ends of optimizer steps: loading, collating, forward, backward, update and bookkeeping.

    A probe looks at the second step.
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
    """Train `steps` steps from the model's present weights, and put them back.

    The first step warms up: it allocates the optimizer's state and is not timed.

    Args:
        size: pairs (TRL) or groups (ours) per micro-batch.
        steps: at least 2; the data must have as many.
        probe: looks at the second step.

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
    """No log lines: every turn would repeat them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Undo what trainers do to a model: new weights, another forward method, another attention, gradients."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().cpu().clone() for name, weight in trained.items()}
    causal_model = model.get_base_model() if hasattr(model, "peft_config") else model
    attention = text_attention(causal_model)
    use_cache = causal_model.config.use_cache
    methods = ("forward", "_original_forward")  # of TRL's fused heads, and of accelerate's autocast
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
