"""Build the callbacks that the monitoring options ask for."""

from dataclasses import dataclass
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.trainer.callbacks.early_stopping import HeldOutEarlyStopping, follow_evaluations
from mrt_plugin.trainer.callbacks.overfitting import Overfitting
from mrt_plugin.trainer.callbacks.samples import HeldOutSamples, pick_prompts
from mrt_plugin.trainer.callbacks.smoke import PROMPTS, SmokeTest


@dataclass(frozen=True)
class Watching:
    """The monitors that the trainer calls itself; None if an option leaves one out."""

    overfitting: Overfitting | None
    samples: HeldOutSamples | None
    smoke: SmokeTest | None


def watch(trainer: Any, options: MultiResponseOptions, tokenizer: PreTrainedTokenizerBase) -> Watching:
    """Add the callbacks that the options ask for to any trainer.

    Raises:
        ValueError: if the run does not support an option. The message says what to change.
        ImportError: if the embedder is not installed.
    """
    args, held_out = trainer.args, trainer.eval_dataset
    all_weights = not (trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled())  # type: ignore[no-untyped-call]
    if options.early_stopping is not None:
        if any(isinstance(callback, EarlyStoppingCallback) for callback in trainer.callback_handler.callbacks):
            raise ValueError(
                "early_stopping and another EarlyStoppingCallback are both set (in Axolotl: early_stopping_patience). "
                "Remove one."
            )
        follow_evaluations(args, several_sets=isinstance(held_out, dict))
        trainer.add_callback(HeldOutEarlyStopping(options.early_stopping, options.min_improvement))

    samples = None
    if options.sample_prompts:
        if held_out is None:
            raise ValueError(
                "sample_prompts answers held-out prompts, and there are none: give an eval_dataset (in Axolotl "
                "val_set_size), or remove it."
            )
        if not all_weights:
            raise ValueError(
                "sample_prompts needs all weights in one process, which FSDP and ZeRO-3 do not give: remove it, "
                "and evaluate the checkpoints afterwards (mrt evaluate)."
            )
        samples = HeldOutSamples(
            tokenizer,
            load_embedder(options.embedder, score_cache=options.score_cache),
            prompts=options.sample_prompts,
            each=options.samples_per_prompt,
            max_tokens=options.sample_tokens,
            seed=args.seed,
        )

    smoke = None
    if options.smoke_steps is not None:
        rows = next(iter(held_out.values())) if isinstance(held_out, dict) else held_out
        smoke = SmokeTest(
            trainer,
            options.smoke_steps,
            pick_prompts(trainer.train_dataset if rows is None else rows, PROMPTS) if all_weights else [],
            max_tokens=options.sample_tokens,
            seed=args.seed,
        )
        trainer.add_callback(smoke)
    return Watching(Overfitting(options.overfit_limit) if options.overfit_limit else None, samples, smoke)
