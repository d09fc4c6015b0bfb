"""One optimizer step per run asked for under DeepSpeed ZeRO-3 on CPU, started by torchrun.

accelerate gives DeepSpeed no backend for CPUs, so its state is made here, with gloo, and the trainer told to use it.
"""

import json
import os
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from transformers import set_seed

from helpers import tiny
from helpers.training import MovesPositions, config, losses, make_groups
from mrt_plugin import MultiResponseSFTTrainer
from mrt_plugin.attention import branches
from mrt_plugin.attention.branches import FORWARD

ZERO_3 = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


def whole(model: torch.nn.Module) -> torch.Tensor:
    parameters = list(model.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        return torch.cat([parameter.detach().flatten() for parameter in parameters]).double()


def main(folder: str, runs: str) -> None:
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    for name, settings in json.loads(runs).items():
        AcceleratorState._reset_state(reset_partial_state=True)  # it takes one DeepSpeed plugin
        PartialState(backend="gloo")
        set_seed(0)
        count = settings.pop("groups")
        groups, held_out = (make_groups(count, 3, weights=True, first=first) for first in (0, count))
        branches.FORWARD = settings.pop("forward", FORWARD)
        broken = settings.pop("broken", False)
        args = config(
            Path(folder),
            max_steps=1,
            optim="sgd",
            **{"learning_rate": 1.0, "deepspeed": ZERO_3, "use_cpu": False, **settings},
            accelerator_config={"use_configured_state": True},
        )
        model = tiny.llama()
        before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).double()
        if broken and args.process_index == 1:
            model.__class__ = MovesPositions
        trainer = MultiResponseSFTTrainer(
            model=model, args=args, train_dataset=groups, eval_dataset=held_out, processing_class=tiny.tokenizer()
        )
        trainer.train()
        gradient = before - whole(model)
        evaluated = trainer.evaluate()["eval_loss"]
        layouts = gather_object([f"{trainer.layout} {trainer._backend.name}"])
        if trainer.args.process_index == 0:
            result = {"loss": losses(trainer)[0], "gradient": gradient, "eval_loss": evaluated, "layouts": layouts}
            torch.save({**result, "processes": trainer.accelerator.num_processes}, Path(folder) / f"{name}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
