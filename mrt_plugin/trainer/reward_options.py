"""Define the options of a reward model's training, from which the command takes its own."""

from dataclasses import dataclass

from mrt_plugin.options import check_values, option


@dataclass(kw_only=True)
class RewardOptions:
    """How a reward model is trained."""

    share: float = option(0.5, "Share of the prompts that the reward model is trained on.", gt=0, lt=1)
    seed: int = option(0, "Of the split, the pairs and the training.", ge=0)
    max_pairs: int = option(16, "The most pairs of one prompt, drawn by a hash.", ge=1)
    max_length: int = option(1024, "The most tokens of a prompt with one response. Longer pairs are left out.", ge=2)
    epochs: float = option(1.0, "Passes over the pairs.", gt=0)
    learning_rate: float = option(1e-5, "Of AdamW; LoRA takes about ten times as much.", gt=0)
    batch_size: int = option(8, "Pairs per step and device.", ge=1)
    lora_r: int = option(0, "Rank of LoRA on all linear layers; it is merged at the end. 0 trains all weights.", ge=0)

    def __post_init__(self) -> None:
        check_values(self, RewardOptions)
