"""Train on several processes: agree on values, and pad the data."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType, broadcast_object_list
from datasets import Dataset, concatenate_datasets
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer
from transformers.integrations import deepspeed

from mrt_plugin.layout.group_row import COLUMNS, IGNORE, OPTIONAL, REFERENCES, SCORES
from mrt_plugin.trainer.redraw import DRAW


def read_sharding(kind: DistributedType, deepspeed: DeepSpeedPlugin | None = None) -> str | None:
    """Return the name of what gathers weights for each forward; None if every process keeps all weights."""
    if kind == DistributedType.DEEPSPEED and deepspeed and deepspeed.zero_stage == 3:
        return "DeepSpeed ZeRO-3"
    return "FSDP" if kind == DistributedType.FSDP else None


@contextmanager
def complete_models() -> Iterator[None]:
    """Give new models complete weights. With ZeRO-3, transformers shards every model that it builds."""
    kept = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


def keep_head_gathered(model: torch.nn.Module) -> None:
    """Keep the output head gathered from the forward to the backward pass (FSDP2), which computes its logits again."""
    # The head is part of the outermost module's weights (accelerate 1.13), or shards with the final norm (1.15).
    inner: Any = model
    for module in (model, inner.get_output_embeddings()) if isinstance(model, FSDPModule) else ():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)


def sum_over_processes(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Return the sum of each value over all processes, on the device of `values`."""
    if accelerator.num_processes == 1:
        return values
    summed: torch.Tensor = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return summed.to(values.device)


def from_main_process(accelerator: Accelerator, compute: Callable[[], Any]) -> Any:
    """Run `compute` in the main process, and return its result or raise its failure in every process."""
    sent: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            sent[0] = compute()
        except Exception as error:
            broadcast_object_list([None, f"{type(error).__name__}: {error}"], from_process=0)
            raise
    broadcast_object_list(sent, from_process=0)
    if sent[1] is not None:
        raise RuntimeError(f"The main process failed: {sent[1]}")
    return sent[0]


def with_fillers(dataset: Dataset, multiple: int) -> Dataset:
    """Extend the dataset to a multiple of `multiple` rows with fillers that train nothing and have no weight."""
    missing = -len(dataset) % multiple
    if not missing:
        return dataset
    filler = {"input_ids": dataset[0]["input_ids"][:1], "labels": [IGNORE], "loss_weights": [0.0], DRAW: None}
    filler |= {"shared_lengths": [0], "segment_lengths": [1], "segment_units": [0.0], "segment_responses": [0]}
    filler |= {SCORES: [math.nan], REFERENCES: [0.0]}
    plain = dataset.select_columns([name for name in (*COLUMNS, *OPTIONAL, DRAW) if name in dataset.column_names])
    row = {name: filler[name] for name in plain.column_names}
    return concatenate_datasets([plain, Dataset.from_list([row] * missing, features=plain.features)])


def forget_evaluation(trainer: Trainer) -> None:
    """Let accelerate wrap a model for training that it has only prepared for an evaluation.

    accelerate 1.15 takes such a model as finished. Under DDP each process would then train on its own gradients.
    """
    sharded = trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if trainer.model_wrapped is trainer.model and not sharded:
        vars(trainer.model).pop("_is_accelerate_prepared", None)
