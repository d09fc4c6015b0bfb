"""How a way of running spreads a model's weights over the processes."""

from dataclasses import dataclass

import torch
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule


@dataclass(frozen=True)
class Sharding:
    """What a backend and the proof must know of it."""

    method: str | None = None
    """What gathers weights for each forward and frees them after it; None where every process keeps them all."""
    everywhere: bool = True
    """Whether every process has the weights before training begins."""
    somewhere: bool = True
    """Whether any process has them whole, so that the loaded model can be proved at all."""


def read_sharding(
    kind: DistributedType,
    fsdp: FullyShardedDataParallelPlugin | None = None,
    deepspeed: DeepSpeedPlugin | None = None,
) -> Sharding:
    """From what accelerate says of a run.

    Example:

    >>> read_sharding(DistributedType.MULTI_GPU).method is None
    True
    """
    if kind == DistributedType.FSDP and fsdp is not None:
        return Sharding("FSDP", everywhere=not fsdp.cpu_ram_efficient_loading)
    if kind == DistributedType.DEEPSPEED and deepspeed is not None and deepspeed.zero_stage == 3:
        return Sharding("DeepSpeed ZeRO-3", everywhere=False, somewhere=False)
    return Sharding()


def keep_head_gathered(model: torch.nn.Module) -> None:
    """Under FSDP2: keep the weights outside the layers, the head's among them, from the forward to the backward pass.

    The head is applied to trained tokens after the model's forward. To keep them is `fully_shard`'s own default for
    the outermost module, which accelerate changes. Elsewhere this does nothing.
    """
    if isinstance(model, FSDPModule):
        model.set_reshard_after_forward(False, recurse=False)
