"""Refuse models and kinds of parallelism whose loss or gradients would be wrong, before training."""

from typing import Any

from peft import PeftModel
from torch.distributed.fsdp import StateDictType
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from mrt_plugin.attention.family import refuse_prompt_learning
from mrt_plugin.models.load import keep_trainable


def check_model(model: Any, args: Any) -> None:
    keep_trainable(model)
    config = model.config.get_text_config().to_dict()
    if config.get("output_router_logits"):
        raise ValueError(
            "The load-balancing loss of a mixture of experts is not computed for groups, whose shared prompt counts "
            "once. Set router_aux_loss_coef=0.0 (TRL), or output_router_logits: false in the model's config."
        )
    refuse_prompt_learning(model)
    # Such layers pass keys and values on next to their outputs, and reentrant checkpointing loses their gradient.
    reuses = config.get("num_kv_shared_layers")
    if reuses and args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        forced = is_deepspeed_zero3_enabled() and isinstance(model, PeftModel)  # type: ignore[no-untyped-call]
        remedy = (
            "TRL makes it reentrant for adapters under ZeRO-3: set gradient_checkpointing: false, or use FSDP 2."
            if forced
            else "Set gradient_checkpointing_kwargs: {use_reentrant: false}."
        )
        raise ValueError(
            f"{model.config.model_type} reuses keys and values in its last {reuses} layers, and reentrant gradient "
            f"checkpointing loses their gradient. {remedy}"
        )


def refuse_half_an_adapter(trainer: Trainer) -> None:
    """Refuse to resume an adapter under FSDP2 from a complete state: it holds the shards of one process only."""
    # accelerate (1.13 to 1.15) writes the adapter's shards of the main process, and reads them back into that alone.
    if not trainer.is_fsdp_enabled or not isinstance(trainer.model, PeftModel):
        return
    plugin: Any = trainer.accelerator.state.fsdp_plugin
    if plugin.state_dict_type == StateDictType.FULL_STATE_DICT:
        raise ValueError(
            "Resuming an adapter under FSDP with fsdp_state_dict_type FULL_STATE_DICT loses its training so far: "
            "accelerate saves only the shards of one process. Train with SHARDED_STATE_DICT to resume."
        )


def refuse_parallelism(trainer: Trainer) -> None:
    """Refuse the kinds of parallelism that would split a group, or that lose the weights of the output head."""
    accelerator = trainer.accelerator
    parallelism = accelerator.parallelism_config
    refusals = {
        "torch.nn.DataParallel is not supported: start one process per GPU (torchrun or accelerate launch), or set "
        "CUDA_VISIBLE_DEVICES to one GPU.": trainer.args.n_gpu > 1,
        "Context, sequence and tensor parallelism split a row, and a group must stay complete: use DDP, FSDP or "
        "DeepSpeed ZeRO.": parallelism is not None and parallelism.non_data_parallel_size > 1,
        "FSDP version 1 frees the output head before it is applied to the trained tokens. Set fsdp_version: 2.": (
            trainer.is_fsdp_enabled and accelerator.state.fsdp_plugin.fsdp_version == 1
        ),
        "accelerator_config: dispatch_batches=True cuts batches into equal rows, and batches of groups have rows of "
        "their own lengths. Remove it.": accelerator.dispatch_batches,
    }
    for message, found in refusals.items():
        if found:
            raise ValueError(message)
