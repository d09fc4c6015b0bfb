"""Runs under FSDP2 that save a checkpoint in the middle, or resume there, started by torchrun."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint.state_dict as saved_states
from peft import LoraConfig
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map
from transformers import set_seed

from helpers import tiny
from helpers.distributed_step import ShardedTrainer
from helpers.training import config, losses, make_groups


def waited(get):
    """Wait for gathered tensors: copying them to the CPU does so elsewhere, but on a CPU nothing is copied."""
    wait = lambda value: value.wait() if isinstance(value, AsyncCollectiveTensor) else value  # noqa: E731
    return lambda *args, **kwargs: tree_map(wait, get(*args, **kwargs))


def main(folder: str, phase: str, runs: str) -> None:
    torch.set_num_threads(1)
    for name in ("get_model_state_dict", "get_optimizer_state_dict"):
        setattr(saved_states, name, waited(getattr(saved_states, name)))
    for name, settings in json.loads(runs).items():
        set_seed(0)
        ShardedTrainer.state_dict_type = settings.pop("saved")
        lora = settings.pop("lora", False)
        args = config(
            Path(folder) / name,
            save_strategy="steps",
            **{"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "prefix_check": True, **settings},
        )
        trainer = ShardedTrainer(
            model=tiny.llama(),
            args=args,
            train_dataset=make_groups(8, 3),
            processing_class=tiny.tokenizer(),
            peft_config=LoraConfig(target_modules="all-linear", r=4) if lora else None,
        )
        checkpoint = str(Path(args.output_dir) / "checkpoint-2")
        try:
            trainer.train(resume_from_checkpoint=checkpoint if phase == "resumed" else None)
        except ValueError as refusal:
            torch.save({"refusal": str(refusal)}, Path(folder) / f"{name}-{phase}.pt")
            continue
        trained = [(key, value) for key, value in trainer.model.named_parameters() if value.requires_grad]
        assert all(isinstance(value, DTensor) for _, value in trained)
        whole = {key: value.full_tensor().detach() for key, value in trained}
        if args.process_index == 0:
            result = {"weights": whole, "losses": losses(trainer), "layout": trainer.layout}
            torch.save(result, Path(folder) / f"{name}-{phase}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
