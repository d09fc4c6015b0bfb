"""Runs that are watched, started by torchrun: every process writes what it saw of each."""

import json
import sys
from pathlib import Path

import torch
from transformers import set_seed

from helpers import tiny
from helpers.training import SHORT, config, make_groups
from mrt_plugin import MultiResponseSFTTrainer
from mrt_plugin.trainer.callbacks.smoke import SmokeTestFailed


def watched(folder: Path, groups, held_out, **settings) -> dict:
    set_seed(0)
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(folder, ddp_find_unused_parameters=False, **settings),
        train_dataset=groups,
        eval_dataset=held_out,
        processing_class=tiny.tokenizer(chat_template=None),
    )
    failure = None
    try:
        trainer.train()
    except SmokeTestFailed as error:
        failure = str(error)
    return {
        "processes": trainer.accelerator.num_processes,
        "rank": trainer.args.process_index,
        "steps": trainer.state.global_step,
        "planned": trainer.state.max_steps,
        "failure": failure,
        "evaluations": [
            {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}
            for entry in trainer.state.log_history
            if "eval_loss" in entry
        ],
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    groups = make_groups(12, 3)
    stops = watched(
        folder,
        groups.select(range(3)),
        groups.select(range(7, 12)),
        learning_rate=5e-3,
        num_train_epochs=40,
        eval_strategy="steps",
        eval_steps=2,
        early_stopping=2,
        min_improvement=0.01,
        save_only_model=True,
        sample_prompts=2,
        samples_per_prompt=2,
        sample_tokens=8,
    )
    fails = watched(folder, SHORT, None, learning_rate=3e-4, num_train_epochs=40, smoke_steps=20, sample_tokens=8)
    rank = stops["rank"]
    (folder / f"process_{rank}.json").write_text(json.dumps({"stops": stops, "fails": fails}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
