"""One optimizer step, run by torchrun from test_distributed.py: writes the loss and the gradient of the whole step."""

import json
import os
import sys
from pathlib import Path

import tiny
import torch
from test_trainer import GradientTap, config, losses, make_groups
from transformers import set_seed

from mrt_plugin import MultiResponseSFTTrainer


def main(folder: str, settings: str) -> None:
    torch.set_num_threads(1)
    set_seed(0)
    wanted = json.loads(settings)
    groups = make_groups(wanted.pop("groups"), 3, weights=True)
    tap = GradientTap()
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(Path(folder), max_steps=1, ddp_find_unused_parameters=False, **wanted),
        train_dataset=groups,
        eval_dataset=groups,
        processing_class=tiny.tokenizer(),
        callbacks=[tap],
    )
    trainer.train()
    evaluated = trainer.evaluate()["eval_loss"]
    if trainer.args.process_index == 0:
        result = {"loss": losses(trainer)[0], "gradient": tap.gradients[0], "eval_loss": evaluated}
        torch.save({**result, "processes": trainer.accelerator.num_processes}, Path(folder) / "step.pt")


if __name__ == "__main__":
    os.environ.setdefault("WANDB_DISABLED", "true")
    main(sys.argv[1], sys.argv[2])
