"""Training on groups: a mixin for any `transformers.Trainer`, and TRL's SFTTrainer with it."""

from mrt_plugin.trainer.sft import MultiResponseSFTConfig, MultiResponseSFTTrainer

__all__ = ["MultiResponseSFTConfig", "MultiResponseSFTTrainer"]
