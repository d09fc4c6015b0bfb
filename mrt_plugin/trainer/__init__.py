"""Training on groups: a mixin for any `transformers.Trainer`, and TRL's SFTTrainer with it.

Names are imported on first use: options need no torch.
"""

from typing import TYPE_CHECKING

from mrt_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from mrt_plugin.trainer.sft import MultiResponseSFTConfig, MultiResponseSFTTrainer

__all__ = ["MultiResponseSFTConfig", "MultiResponseSFTTrainer"]

__getattr__ = lazy_names(__name__, {"MultiResponseSFTConfig": ".sft", "MultiResponseSFTTrainer": ".sft"})
