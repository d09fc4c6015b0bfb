"""A run that reports to experiment trackers, in a process of its own: they finish writing when it ends."""

import sys
from pathlib import Path

from helpers import tiny
from helpers.training import SHORT, config
from mrt_plugin import MultiResponseSFTTrainer, load_groups


def main(folder: Path, *trackers: str) -> None:
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(
            folder,
            report_to=list(trackers),
            project="groups",
            run_name="first",
            selector="random_k",
            k=2,
            seed=7,
            eval_strategy="epoch",
        ),
        train_dataset=load_groups(folder / "pool.jsonl"),
        eval_dataset=SHORT,
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    trainer.state.save_to_json(str(folder / "state.json"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
