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
from mrt_plugin.groups.text import units
from mrt_plugin.sampling.settings import Draw
from mrt_plugin.trainer.callbacks.samples import PromptTokens, answer
from mrt_plugin.trainer.processes import from_main_process, sum_over_processes

logger = logging.getLogger(__name__)

FEWEST = 10
"""Smallest number of steps for which a trend is tested."""

PROMPTS = 8
"""Number of prompts, each answered once."""

WELL_FORMED = 0.5
"""Minimum share of answers that must be well formed. Answers are drawn from the model's own distribution, and after a
hundred steps not every answer ends. If most do not end, something is wrong with the template or the labels."""

LOOP = 0.6
"""A looping answer repeats runs of fifteen words in at least this share, as in the curation rule `repetition`."""


SIGNIFICANT = 0.05
"""One-sided significance level of the tests."""


class SmokeTestFailed(RuntimeError):
    """A check of the smoke test failed. The message says what was found and what to do."""


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    passed: bool
    text: str


class SmokeTest(TrainerCallback):
    """Trains some steps of the real run, including its schedule, and stops.

    It checks that

    * the loss and the gradients are finite before each optimizer step. Under fp16 the loss scale first searches for
      its range, so gradients count from the second half of the steps. DeepSpeed hides gradients from `parameters()`,
      so the gradient norm that it logs is checked;
    * the loss falls by more than its noise (`trend`);
    * a forward and backward pass of the longest rows fits into memory once the optimizer has its state;
    * answers to a few prompts end with an end token, are not empty and do not repeat themselves in a loop. The prompts
      are held-out ones if there are any.

    Every process reaches the same verdict. If no process holds all weights (FSDP, ZeRO-3), no answers are sampled, and
    the verdict says so.

    Raises:
        SmokeTestFailed: in every process. It is raised at once if a number is not finite, otherwise at the end with
            all findings.
    """

    def __init__(
        self, trainer: Any, steps: int, prompts: list[PromptTokens], *, max_tokens: int | None, seed: int
    ) -> None:
        self._trainer = trainer
        self._steps = steps
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._seed = seed
        self._begin = 0
        self._pending = 0.0
        self._losses: list[float] = []

    def add_loss(self, loss: float) -> None:
        """Add a micro-batch's part of the step's loss, over all processes."""
        self._pending += loss

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reset the losses. A resumed run is tested from the step at which it continues."""
        self._begin = state.global_step
        self._pending, self._losses = 0.0, []
        logger.info("Smoke test: %d steps, then a verdict.", self._steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Check the step's loss and gradients before the weights are updated."""
        step = state.global_step + 1
        self._losses.append(self._pending)
        self._pending = 0.0
        if not math.isfinite(self._losses[-1]):
            raise SmokeTestFailed(
                f"Smoke test failed at step {step}: the loss is {self._losses[-1]}. Look for a learning rate that is "
                "too high, for fp16 where bf16 is possible, and for damaged weights (load the model and look at its "
                "loss before training)."
            )
        searching = args.fp16 and step - self._begin <= self._steps // 2
        if not searching and self._not_finite(model):
            raise SmokeTestFailed(
                f"Smoke test failed at step {step}: the loss is {self._losses[-1]:.4f}, but its gradient is not "
                "finite. Lower the learning rate, or use bf16 or fp32 for fp16."
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Check the logged gradient norm, which is all that DeepSpeed shows."""
        norm = (logs or {}).get("grad_norm")
        if norm is not None and not args.fp16 and not math.isfinite(norm):
            raise SmokeTestFailed(
                f"Smoke test failed at step {state.global_step}: the gradient norm is {norm}. Lower the learning rate."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop after the requested number of steps."""
        if state.global_step - self._begin >= self._steps:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Run the checks at the end and report the verdict."""
        findings = [self._loss_finding(), self._memory_finding(), self._answers_finding()]
        lines = [f"  {'ok' if finding.passed else 'FAILED'}: {finding.text}" for finding in findings]
        steps = state.global_step - self._begin
        if not all(finding.passed for finding in findings):
            raise SmokeTestFailed(f"Smoke test failed after {steps} steps.\n" + "\n".join(lines))
        logger.warning(
            "Smoke test passed after %d steps. Remove smoke_steps to train; what is saved now is a model of %d steps."
            "\n%s",
            steps,
            state.global_step,
            "\n".join(lines),
        )

    def _not_finite(self, model: torch.nn.Module) -> bool:
        """Return whether a gradient in any process is not finite."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
        bad = float(bool(local) and not torch.isfinite(torch.nn.utils.get_total_norm(local)))
        return bool(sum_over_processes(self._trainer.accelerator, torch.tensor(bad)))

    def _loss_finding(self) -> Finding:
        if len(self._losses) < FEWEST:
            return Finding(False, f"only {len(self._losses)} steps were trained, too few to see a trend: more data.")
        found = trend(self._losses)
        line = f"from {found.first:.4f} to {found.last:.4f} (Theil-Sen line over {len(self._losses)} steps)"
        if found.falls:
            return Finding(True, f"the loss falls, {line}.")
        if found.rises:
            return Finding(False, f"the loss rises, {line}: lower the learning rate, or look at the data.")
        return Finding(
            False,
            f"the loss does not fall by more than its noise, {line}, Mann-Kendall p = {found.p_falls:.2f}: raise "
            "smoke_steps or the batch, shorten the warm-up, or raise the learning rate.",
        )

    def _memory_finding(self) -> Finding:
        """Try the longest rows. Running out of memory here ends the run with advice, as anywhere in training."""
        tokens = self._trainer.try_longest_rows()
        peak = ""
        if torch.cuda.is_available():
            peak = f"; peak memory of this process {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        return Finding(True, f"the longest rows fit ({tokens:,} tokens in one micro-batch{peak}).")

    def _answers_finding(self) -> Finding:
        if not self._prompts:
            return Finding(True, "no answers were sampled: no process holds all weights.")
        return from_main_process(self._trainer.accelerator, self._judge)

    def _judge(self) -> Finding:
        trainer = self._trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        with trainer.compute_loss_context_manager():
            answers = answer(
                model,
                trainer.data_collator.tokenizer,
                self._prompts,
                each=1,
                max_tokens=self._max_tokens,
                seed=self._seed,
            )
        faults = [fault_of(draws[0]) for draws in answers]
        good = faults.count(None)
        text = f"{good} of {len(faults)} answers are well formed"
        if good >= WELL_FORMED * len(faults):
            return Finding(True, text + ".")
        place, fault = next((place, fault) for place, fault in enumerate(faults) if fault is not None)
        return Finding(
            False,
            f"{text}. The first that is not {fault}: {answers[place][0].text[:200]!r}. Look at the chat template, at "
            "what ends a response in the data, and at whether the end token is trained.",
        )


def fault_of(draw: Draw) -> str | None:
    """Return what is wrong with an answer, in words, or None if nothing is.

    Example:

    >>> fault_of(Draw("", "stop", 0)), fault_of(Draw("Paris.", "stop", 3))
    ('is empty', None)
    """
    if draw.ending != "whole":
        return f"did not end within {draw.tokens} tokens"
    if not draw.text.strip():
        return "is empty"
    return "goes round in circles" if repeated_share(units(draw.text)) >= LOOP else None


@dataclass(frozen=True)
class Trend:
    """A monotone trend in a series."""

    first: float
    """First value on the line through the series; `last` is the last one."""
    last: float
    falls: bool
    """Whether the series falls by more than its noise explains."""
    rises: bool
    p_falls: float
    """Probability of at least so many falling pairs if the order were random."""


def trend(values: Sequence[float]) -> Trend:
    """Test for a monotone trend (Mann-Kendall) and fit a line (Theil-Sen).

    Each pair of values votes on the direction, so neither one extreme batch nor the size of the noise decides (Mann
    1945, Econometrica 13; Sen 1968, JASA 63). The effect of an easy or hard batch on a loss is assumed to be
    independent from step to step.

    Example:

    >>> trend([2.0, 1.8, 1.9, 1.6, 1.7, 1.5, 1.4, 1.5, 1.2, 1.1]).falls
    True
    """
    steps = np.arange(len(values))
    slope, middle, *_ = theilslopes(values, steps)
    p_falls, p_rises = (
        kendalltau(steps, values, alternative=alternative).pvalue for alternative in ("less", "greater")
    )
    return Trend(
        first=float(middle),
        last=float(middle + slope * steps[-1]),
        falls=bool(p_falls < SIGNIFICANT),
        rises=bool(p_rises < SIGNIFICANT),
        p_falls=float(p_falls),
    )
