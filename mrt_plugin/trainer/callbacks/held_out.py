"""Monitoring of the held-out loss: early stopping, and a warning when the gap to the training loss has grown."""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

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
        """Set the reference to an evaluation that improves on it; count any other evaluation."""
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


def follow_evaluations(args: TrainingArguments, *, several_sets: bool) -> None:
    """Set the arguments for loading the best checkpoint. A checkpoint is written at every evaluation."""
    if args.eval_strategy == IntervalStrategy.NO:
        raise ValueError(
            "early_stopping needs evaluations: give held-out data and say how often it is evaluated "
            "(eval_strategy='steps' and eval_steps; in Axolotl val_set_size, and eval_steps or evals_per_epoch)."
        )
    if args.metric_for_best_model is None:
        args.metric_for_best_model = "loss"
    if several_sets and args.metric_for_best_model in ("loss", "eval_loss"):
        raise ValueError(
            "early_stopping with several held-out sets needs the one that decides: set "
            "metric_for_best_model='eval_<name>_loss'."
        )
    if args.greater_is_better is None:
        args.greater_is_better = not args.metric_for_best_model.endswith("loss")
    args.load_best_model_at_end = True
    if args.save_strategy != SaveStrategy.BEST:
        args.save_strategy = SaveStrategy(IntervalStrategy(args.eval_strategy).value)
        if args.eval_steps is not None:
            args.save_steps = args.eval_steps


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
