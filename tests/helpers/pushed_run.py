"""A run that is pushed to a hub, in a process of its own: the hub's address is read when libraries are imported."""

import sys
from pathlib import Path

from peft import LoraConfig

from helpers import tiny
from helpers.training import config, make_groups
from mrt_plugin import MultiResponseSFTTrainer


def main(folder: Path) -> None:
    trainer = MultiResponseSFTTrainer(
        model=tiny.model_dir(folder / "model"),
        args=config(
            folder,
            selector="random_k",
            k=2,
            max_steps=2,
            save_strategy="steps",
            save_steps=1,
            push_to_hub=True,
            hub_model_id="someone/run",
            hub_strategy="end",
            hub_token="hf_notatoken",
        ),
        train_dataset=make_groups(6, 4),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    trainer.push_to_hub(license="apache-2.0", dataset_name="someone/pool")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
