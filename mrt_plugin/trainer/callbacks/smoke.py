"""A smoke test: train the first steps, check them, and give a verdict before the long run."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, theilslopes
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from mrt_plugin.curation.texts import repeated_share
from mrt_plugin.endpoint.jobs import Draw
from mrt_plugin.groups.messages import units
from mrt_plugin.trainer.callbacks.samples import PromptTokens, Sampler
from mrt_plugin.trainer.processes import from_main_process, sum_over_processes

logger = logging.getLogger(__name__)

FEWEST, PROMPTS = 10, 8
"""Smallest number of steps for which a trend is tested, and number of prompts, each answered once."""

WELL_FORMED = 0.5  # of the answers: after a hundred steps not every sampled one ends by itself

LOOP = 0.6
"""A looping answer repeats runs of fifteen words in at least this share, as in the curation rule `repetition`."""

SIGNIFICANT = 0.05  # one-sided


class SmokeTestFailed(RuntimeError):
    """A check of the smoke test failed. The message says what was found and what to do."""


class SmokeTest(TrainerCallback):
    """Trains some steps of the real run, and stops with the same verdict in every process: finite numbers, a loss
    that falls, memory for the longest rows, and well-formed answers to a few prompts."""

    def __init__(self, trainer: Any, steps: int, prompts: list[PromptTokens], sampler: Sampler) -> None:
        """`prompts` are empty if no process holds all weights."""
        self._trainer, self._steps, self._prompts, self._sampler = trainer, steps, prompts, sampler
        self._begin, self._losses = 0, list[float]()
        self.pending_loss = 0.0
        """The step's loss so far, over all processes. The trainer adds to it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin, self.pending_loss, self._losses = state.global_step, 0.0, []
        logger.info("Smoke test: %d steps, then a verdict.", self._steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        step, loss = state.global_step + 1, self.pending_loss
        self._losses.append(loss)
        self.pending_loss = 0.0
        if not math.isfinite(loss):
            raise SmokeTestFailed(
                f"Smoke test failed at step {step}: the loss is {loss}. Look for a learning rate that is too high, "
                "for fp16 where bf16 is possible, and for damaged weights (a high loss before training)."
            )
        # Under fp16 the loss scale first searches for its range.
        searching = args.fp16 and step - self._begin <= self._steps // 2
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
        bad = float(bool(local) and not torch.isfinite(torch.nn.utils.get_total_norm(local)))
        if not searching and sum_over_processes(self._trainer.accelerator, torch.tensor(bad)):
            raise SmokeTestFailed(
                f"Smoke test failed at step {step}: the loss is {loss:.4f}, but its gradient is not finite. Lower the "
                "learning rate, or use bf16 or fp32 for fp16."
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Check the logged gradient norm: DeepSpeed hides gradients from `parameters()`."""
        norm = (logs or {}).get("grad_norm")
        if norm is not None and not args.fp16 and not math.isfinite(norm):
            raise SmokeTestFailed(
                f"Smoke test failed at step {state.global_step}: the gradient norm is {norm}. Lower the learning rate."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step - self._begin >= self._steps:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Running out of memory here ends the run with advice, as anywhere in training.
        tokens, peak = self._trainer.try_longest_rows(), ""
        if torch.cuda.is_available():
            peak = f"; peak memory of this process {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        memory = True, f"the longest rows fit ({tokens:,} tokens in one micro-batch{peak})."
        findings = [self._loss_finding(), memory, self._answers_finding()]
        lines = "\n".join(f"  {'ok' if passed else 'FAILED'}: {text}" for passed, text in findings)
        steps = state.global_step - self._begin
        if not all(passed for passed, _ in findings):
            raise SmokeTestFailed(f"Smoke test failed after {steps} steps.\n{lines}")
        logger.warning(
            f"Smoke test passed after {steps} steps. Remove smoke_steps to train; what is saved now is a model of "
            f"{state.global_step} steps.\n{lines}"
        )

    def _loss_finding(self) -> tuple[bool, str]:
        if len(self._losses) < FEWEST:
            return False, f"only {len(self._losses)} steps were trained, too few to see a trend: more data."
        found = trend(self._losses)
        line = f"from {found.first:.4f} to {found.last:.4f} (Theil-Sen line over {len(self._losses)} steps)"
        if found.falls:
            return True, f"the loss falls, {line}."
        if found.rises:
            return False, f"the loss rises, {line}: lower the learning rate, or look at the data."
        noise = f"the loss does not fall by more than its noise, {line}, Mann-Kendall p = {found.p_falls:.2f}: "
        return False, noise + "raise smoke_steps or the batch, shorten the warm-up, or raise the learning rate."

    def _answers_finding(self) -> tuple[bool, str]:
        if not self._prompts:
            return True, "no answers were sampled: no process holds all weights."
        trainer = self._trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        with trainer.compute_loss_context_manager():
            answers = from_main_process(trainer.accelerator, lambda: self._sampler.answer(model, self._prompts))
        faults = [(fault_of(draw), draw.text) for (draw,) in answers]
        bad = [(fault, text) for fault, text in faults if fault is not None]
        text = f"{len(faults) - len(bad)} of {len(faults)} answers are well formed"
        if len(faults) - len(bad) >= WELL_FORMED * len(faults):
            return True, text + "."
        return False, (
            f"{text}. The first that is not {bad[0][0]}: {bad[0][1][:200]!r}. Look at the chat template, at what ends "
            "a response in the data, and at whether the end token is trained."
        )


def fault_of(draw: Draw) -> str | None:
    """Return what is wrong with an answer, in words, or None if nothing is."""
    if draw.ending != "whole":
        return f"did not end within {draw.tokens} tokens"
    if not draw.text.strip():
        return "is empty"
    return "goes round in circles" if repeated_share(units(draw.text)) >= LOOP else None


@dataclass(frozen=True)
class Trend:
    """The ends of the line through a series, and whether the series falls or rises by more than its noise."""

    first: float
    last: float
    falls: bool
    rises: bool
    p_falls: float


def trend(values: Sequence[float]) -> Trend:
    """Test for a monotone trend (Mann-Kendall: Mann 1945, Econometrica 13) and fit a line (Theil-Sen: Sen 1968,
    JASA 63), in which neither an extreme batch nor the size of the noise decides."""
    steps = np.arange(len(values))
    slope, middle, *_ = theilslopes(values, steps)
    falls, rises = (float(kendalltau(steps, values, alternative=side).pvalue) for side in ("less", "greater"))
    last = float(middle + slope * steps[-1])
    return Trend(float(middle), last, falls < SIGNIFICANT, rises < SIGNIFICANT, falls)
