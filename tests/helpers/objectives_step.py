"""One optimizer step per run asked for, started by torchrun, for objectives other than the NLL."""

import json
import sys
from pathlib import Path

import torch
from transformers import set_seed

from helpers import tiny
from helpers.distributed_step import ShardedTap, ShardedTrainer
from helpers.ranked import make_ranked
from helpers.training import GradientTap, config, losses
from mrt_plugin import MultiResponseSFTTrainer


def main(folder: str, runs: str) -> None:
    torch.set_num_threads(1)
    for name, settings in json.loads(runs).items():
        set_seed(0)
        groups, held_out = make_ranked(settings.pop("groups")), make_ranked(5, first=20)
        sharded = settings.pop("sharded", False)  # the state of accelerate stays so: such runs come last
        tap = ShardedTap() if sharded else GradientTap()
        trainer = (ShardedTrainer if sharded else MultiResponseSFTTrainer)(
            model=tiny.llama(),
            args=config(Path(folder), max_steps=1, ddp_find_unused_parameters=False, **settings),
            train_dataset=groups,
            eval_dataset=held_out,
            processing_class=tiny.tokenizer(),
            callbacks=[tap],
        )
        before = trainer.evaluate() if not sharded else {}
        trainer.train()
        if trainer.args.process_index == 0:
            logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
            result = {"loss": losses(trainer)[0], "gradient": tap.gradients[0], "logged": logged, "before": before}
            torch.save({**result, "processes": trainer.accelerator.num_processes}, Path(folder) / f"{name}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
