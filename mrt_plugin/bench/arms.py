"""The arms of a benchmark: the trainers as users build them, on the same pairs."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE, build_group_row
from mrt_plugin.trainer import MultiResponseSFTConfig, MultiResponseSFTTrainer


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    trl: bool
    """Whether this is TRL's own trainer, on rows of one pair each."""
    options: tuple[tuple[str, Any], ...]
    """Options in addition to the common ones."""

    def sizes(self, k: int, groups: int) -> list[int]:
        """Return the micro-batch sizes that divide a step: in pairs for TRL, in groups for ours."""
        total = groups * k if self.trl else groups
        return [size for size in range(1, total + 1) if total % size == 0]


@dataclass(frozen=True)
class Data:
    """The same groups, in the form that each trainer takes."""

    pairs: Dataset
    """`input_ids` and `labels`, one pair per row, group after group."""
    groups: Dataset
    """`GroupRow`s."""
    k: int
    groups_per_step: int
    tokens_per_group: int
    """Tokens of the longest group, with its prompt copied for each response."""

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps in one pass over the data."""
        return len(self.groups) // self.groups_per_step


def make_data(groups: Sequence[Sequence[Pair]], groups_per_step: int) -> Data:
    """Build both forms of the groups."""
    rows = [build_group_row(pairs) for pairs in groups]
    pairs = [
        {
            "input_ids": pair.input_ids,
            "labels": [
                token if trained else IGNORE for token, trained in zip(pair.input_ids, pair.trained, strict=True)
            ],
        }
        for group in groups
        for pair in group
    ]
    longest = max(sum(len(pair.input_ids) for pair in group) for group in groups)
    return Data(
        Dataset.from_list(pairs),
        Dataset.from_list([dict(row) for row in rows]),
        len(groups[0]),
        groups_per_step,
        longest,
    )


def all_arms(prefix_backends: Sequence[str]) -> list[Arm]:
    """Return TRL's modes, then ours.

    If TRL treats `chunked_nll` as another name of `nll`, both are one arm. This is the case in its later releases,
    which always compute the loss in chunks. The packed arm is TRL's `padding_free` with the last of its losses. It
    puts the pairs of a micro-batch into one sequence, which is what TRL's packing passes to the model.

    Example:

    >>> [arm.name for arm in all_arms(["sdpa"])][-2:]
    ['mrt expanded', 'mrt shared sdpa']
    """
    losses = list(dict.fromkeys(_loss_type(name) for name in ("nll", "chunked_nll")))
    return [
        *(Arm(f"trl {loss}", True, (("loss_type", loss),)) for loss in losses),
        Arm("trl packed", True, (("loss_type", losses[-1]), ("padding_free", True))),
        Arm("mrt expanded", False, (("layout", "expanded"),)),
        *(
            Arm(f"mrt shared {backend}", False, (("layout", "shared_prefix"), ("prefix_backend", backend)))
            for backend in prefix_backends
        ),
    ]


def _loss_type(name: str) -> str:
    """Return the loss type that the installed TRL uses for a name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return str(SFTConfig(output_dir="unused", loss_type=name, bf16=False, use_cpu=True).loss_type)


def build_trainer(
    arm: Arm,
    model: Any,
    tokenizer: Any,
    data: Data,
    size: int,
    *,
    steps: int,
    bf16: bool,
    cpu: bool,
    gradient_checkpointing: bool,
    output_dir: str,
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    """Build the arm's trainer, ready for `train()`. Every arm sees the same pairs in the same optimizer step.

    Args:
        size: pairs (TRL) or groups (ours) per micro-batch.
        steps: optimizer steps to train.
    """
    per_step = data.groups_per_step * (data.k if arm.trl else 1)
    common: dict[str, Any] = {
        "output_dir": output_dir,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": cpu,
        "bf16": bf16,
        "gradient_checkpointing": gradient_checkpointing,
        "max_steps": steps,
        "logging_steps": steps,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": per_step // size,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if arm.trl:
            config = SFTConfig(**common, max_length=None, **dict(arm.options))
            return SFTTrainer(model, config, train_dataset=data.pairs, processing_class=tokenizer, callbacks=callbacks)
        length = size * data.tokens_per_group  # a micro-batch is one row, in either layout
        ours = MultiResponseSFTConfig(
            **common, selector="all", prefix_check=False, max_length=length, row_length=length, **dict(arm.options)
        )
        return MultiResponseSFTTrainer(
            model, ours, train_dataset=data.groups, processing_class=tokenizer, callbacks=callbacks
        )
