"""Training on groups: a mixin for any `transformers.Trainer`, and TRL's SFTTrainer with it."""

from mrt_plugin.trainer.config import MultiResponseSFTConfig
from mrt_plugin.trainer.sft import MultiResponseSFTTrainer

__all__ = ["MultiResponseSFTConfig", "MultiResponseSFTTrainer"]
