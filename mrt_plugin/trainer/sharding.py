"""Support for FSDP and DeepSpeed ZeRO-3, which shard a model's weights over the processes."""

import torch
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch.distributed.fsdp import FSDPModule


def read_sharding(kind: DistributedType, deepspeed: DeepSpeedPlugin | None = None) -> str | None:
    """Return the name of what gathers weights for each forward and frees them afterwards.

    Return None if every process keeps all weights.

    Args:
        kind: the distributed type of accelerate.
        deepspeed: accelerate's DeepSpeed plugin, if there is one.

    Example:

    >>> read_sharding(DistributedType.FSDP)
    'FSDP'
    """
    if kind == DistributedType.FSDP:
        return "FSDP"
    if kind == DistributedType.DEEPSPEED and deepspeed is not None and deepspeed.zero_stage == 3:
        return "DeepSpeed ZeRO-3"
    return None


def keep_head_gathered(model: torch.nn.Module) -> None:
    """Keep the weights outside the layers gathered from the forward to the backward pass (FSDP2 only).

    The output head is one of these weights, and it is applied to trained tokens after the model's forward.
    `fully_shard` keeps the outermost module's weights by default, but accelerate changes this. Without FSDP2 this does
    nothing.
    """
    if isinstance(model, FSDPModule):
        model.set_reshard_after_forward(False, recurse=False)
