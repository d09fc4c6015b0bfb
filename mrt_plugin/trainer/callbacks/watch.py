"""Build the callbacks that the monitoring options ask for."""

from dataclasses import dataclass
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.trainer.callbacks.held_out import HeldOutEarlyStopping, Overfitting, follow_evaluations
from mrt_plugin.trainer.callbacks.samples import HeldOutSamples, Sampler, pick_prompts
from mrt_plugin.trainer.callbacks.smoke import PROMPTS, SmokeTest


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
                "early_stopping and another EarlyStoppingCallback are both set (in Axolotl: early_stopping_patience). "
                "Remove one."
            )
        follow_evaluations(args, several_sets=isinstance(held_out, dict))
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
