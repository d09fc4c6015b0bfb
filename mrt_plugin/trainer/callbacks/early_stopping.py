"""Early stopping on the held-out loss with a minimum improvement; the best checkpoint is loaded at the end."""

import logging
from typing import Any

import numpy as np
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

logger = logging.getLogger(__name__)


class HeldOutEarlyStopping(EarlyStoppingCallback):
    """transformers' `EarlyStoppingCallback` with another reference for the comparison.

    transformers compares an evaluation with the best one so far. A loss that falls steadily, but by less than the
    threshold each time, therefore stops the run. Here the reference moves only when an evaluation passes the
    threshold, so small improvements add up. The best checkpoint is still chosen without a threshold.
    """

    def __init__(self, patience: int, min_improvement: float, reference: float | None = None) -> None:
        super().__init__(early_stopping_patience=patience, early_stopping_threshold=min_improvement)
        self.patience = patience
        self.min_improvement = min_improvement
        self.reference = reference

    def on_evaluate(  # type: ignore[override]
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Stop when patience is exhausted. Of several held-out sets, only the one with the metric counts."""
        if _metric(args) not in metrics:
            return
        super().on_evaluate(args, state, control, metrics, **kwargs)  # type: ignore[no-untyped-call]
        if control.should_training_stop and self.early_stopping_patience_counter >= self.patience:
            logger.warning(
                "Stopped at step %d: %s has not improved on %.4f by %g for %d evaluations. The best checkpoint is "
                "loaded.",
                state.global_step,
                _metric(args),
                self.reference,
                self.min_improvement,
                self.early_stopping_patience_counter,
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
        """Return what a checkpoint stores."""
        return {
            "args": {
                "patience": self.patience,
                "min_improvement": self.min_improvement,
                "reference": self.reference,
            },
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


def _metric(args: TrainingArguments) -> str:
    name = str(args.metric_for_best_model)
    return name if name.startswith("eval_") else f"eval_{name}"
