"""Monitoring of a run: early stopping, a warning of overfitting, and the callbacks that the options ask for."""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.trainer.callbacks.samples import HeldOutSamples, Sampler, pick_prompts
from mrt_plugin.trainer.callbacks.smoke import PROMPTS, SmokeTest

logger = logging.getLogger(__name__)

TRAIN_ROWS = 64
"""Number of training rows evaluated next to the held-out rows. They stay the same, so their difficulty cancels."""


class HeldOutEarlyStopping(EarlyStoppingCallback):
    """transformers' `EarlyStoppingCallback`, with a reference that moves only when an evaluation passes the
    threshold, so that small improvements add up instead of stopping the run."""

    def __init__(self, patience: int, min_improvement: float, reference: float | None = None) -> None:
        super().__init__(early_stopping_patience=patience, early_stopping_threshold=min_improvement)
        self.patience, self.min_improvement, self.reference = patience, min_improvement, reference

    def on_evaluate(  # type: ignore[override]
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Stop when patience is exhausted. Of several held-out sets, only the one with the metric counts."""
        metric = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        if metric not in metrics:
            return
        super().on_evaluate(args, state, control, metrics, **kwargs)  # type: ignore[no-untyped-call]
        if control.should_training_stop and self.early_stopping_patience_counter >= self.patience:
            logger.warning(
                f"Stopped at step {state.global_step}: {metric} has not improved on {self.reference:.4f} by "
                f"{self.min_improvement:g} for {self.early_stopping_patience_counter} evaluations. The best "
                "checkpoint is loaded."
            )

    def check_metric_value(self, args: Any, state: Any, control: Any, metric_value: float) -> None:
        sign = 1 if args.greater_is_better else -1
        gain = np.inf if self.reference is None else sign * (metric_value - self.reference)
        if gain > self.min_improvement:
            self.reference = metric_value
            self.early_stopping_patience_counter = 0
        else:
            self.early_stopping_patience_counter += 1

    def state(self) -> dict[str, Any]:
        return {
            "args": {name: getattr(self, name) for name in ("patience", "min_improvement", "reference")},
            "attributes": {"early_stopping_patience_counter": self.early_stopping_patience_counter},
        }


@dataclass
class Overfitting:
    """The gap of held-out over training loss, in nats per token, compared with the smallest gap of the run: not
    with 0, because the two sets differ in how hard their prompts are."""

    limit: float
    """Growth above which it warns. At 0.2, held-out tokens lost a factor of e^0.2 = 1.22 in probability."""
    _smallest: dict[str, float] = field(default_factory=dict)
    _best: dict[str, tuple[float, int]] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def metrics(self, prefix: str, *, held_out: float, train: float, step: int) -> dict[str, float]:
        """Return the gap to log. Warn once per held-out set when its growth exceeds the limit."""
        gap = held_out - train
        smallest = self._smallest[prefix] = min(gap, self._smallest.get(prefix, gap))
        best, best_step = self._best[prefix] = min((held_out, step), self._best.get(prefix, (held_out, step)))
        if gap - smallest > self.limit and prefix not in self._warned:
            self._warned.add(prefix)
            verdict = "The held-out loss itself still falls, so going on is worth it for now"
            if held_out > best:
                verdict = f"The held-out loss was best at step {best_step} ({best:.4f}) and is {held_out:.4f} now: "
                verdict += "stop here, or set early_stopping, and keep the best checkpoint"
            logger.warning(
                f"Overfitting: at step {step} the gap between held-out and training loss is {gap:.3f} nats per token, "
                f"{gap - smallest:.3f} more than at its smallest (overfit_limit={self.limit:g}). {verdict}. Against "
                "it: fewer epochs, more prompts, more responses per prompt, a smaller learning rate or LoRA rank."
            )
        return {f"{prefix}_train_gap": gap}


@dataclass(frozen=True)
class Watching:
    """The monitors that the trainer calls itself; None if an option leaves one out."""

    overfitting: Overfitting | None
    samples: HeldOutSamples | None
    smoke: SmokeTest | None


def watch(trainer: Any, options: MultiResponseOptions, tokenizer: PreTrainedTokenizerBase) -> Watching:
    """Add the callbacks that the options ask for to any trainer, or say why the run does not support an option."""
    args, held_out = trainer.args, trainer.eval_dataset
    all_weights = not (trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled())  # type: ignore[no-untyped-call]
    if options.early_stopping is not None:
        if any(isinstance(callback, EarlyStoppingCallback) for callback in trainer.callback_handler.callbacks):
            raise ValueError(
                "early_stopping and another EarlyStoppingCallback (early_stopping_patience) are both set. Remove one."
            )
        if args.eval_strategy == IntervalStrategy.NO:
            raise ValueError(
                "early_stopping needs evaluations: give held-out data and say how often it is evaluated "
                "(eval_strategy='steps' and eval_steps; in Axolotl val_set_size, and eval_steps or evals_per_epoch)."
            )
        args.metric_for_best_model = args.metric_for_best_model or "loss"
        if isinstance(held_out, dict) and args.metric_for_best_model in ("loss", "eval_loss"):
            raise ValueError(
                "early_stopping with several held-out sets needs the one that decides: set "
                "metric_for_best_model='eval_<name>_loss'."
            )
        if args.greater_is_better is None:
            args.greater_is_better = not args.metric_for_best_model.endswith("loss")
        args.load_best_model_at_end = True
        if args.save_strategy != SaveStrategy.BEST:  # a checkpoint is written at every evaluation
            args.save_strategy = SaveStrategy(IntervalStrategy(args.eval_strategy).value)
            args.save_steps = args.save_steps if args.eval_steps is None else args.eval_steps
        trainer.add_callback(HeldOutEarlyStopping(options.early_stopping, options.min_improvement))

    samples = smoke = None
    if options.sample_prompts:
        if held_out is None:
            raise ValueError("sample_prompts needs held-out prompts: give an eval_dataset (in Axolotl val_set_size).")
        if not all_weights:
            raise ValueError(
                "sample_prompts needs all weights in one process, which FSDP and ZeRO-3 do not give: remove it, "
                "and evaluate the checkpoints afterwards (mrt evaluate)."
            )
        embed = load_embedder(options.embedder, score_cache=options.score_cache)
        sampler = Sampler(tokenizer, options.samples_per_prompt, options.sample_tokens, args.seed)
        samples = HeldOutSamples(sampler, embed, options.sample_prompts)
    if options.smoke_steps is not None:
        rows = next(iter(held_out.values())) if isinstance(held_out, dict) else held_out
        prompts = pick_prompts(trainer.train_dataset if rows is None else rows, PROMPTS) if all_weights else []
        sampler = Sampler(tokenizer, 1, options.sample_tokens, args.seed)
        smoke = SmokeTest(trainer, options.smoke_steps, prompts, sampler)
        trainer.add_callback(smoke)
    return Watching(Overfitting(options.overfit_limit) if options.overfit_limit else None, samples, smoke)
