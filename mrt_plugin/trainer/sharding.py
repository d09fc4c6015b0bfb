"""What FSDP and DeepSpeed ZeRO-3, which spread a model's weights over the processes, ask of a grouped run."""

import torch
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch.distributed.fsdp import FSDPModule


def read_sharding(kind: DistributedType, deepspeed: DeepSpeedPlugin | None = None) -> str | None:
    """What gathers weights for each forward and frees them after it; None where every process keeps them all.

    Args:
        kind: how accelerate runs.
        deepspeed: its plugin, if there is one.

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
    """Under FSDP2: keep the weights outside the layers, the head's among them, from the forward to the backward pass.

    The head is applied to trained tokens after the model's forward. To keep them is `fully_shard`'s own default for
    the outermost module, which accelerate changes. Elsewhere this does nothing.
    """
    if isinstance(model, FSDPModule):
        model.set_reshard_after_forward(False, recurse=False)
