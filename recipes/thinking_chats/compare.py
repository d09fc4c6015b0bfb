"""Train the chat set without and with the plugin, and compare losses, tokens and time.

    python -m recipes.thinking_chats.prepare
    python -m recipes.thinking_chats.compare

Needs an idle machine for the times. A step's time is that of the optimizer steps over their number: without start-up,
and without the proof before training.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from recipes.thinking_chats.prepare import FOLDER

RECIPES = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    losses: list[float]
    """Of each step, in nats per trained token."""
    tokens: list[int]
    """Those computed in each step, without padding."""
    seconds: float
    """Mean time of a step."""


def train(name: str, tokens: list[int]) -> Run:
    """Run the recipe with `axolotl train`. `tokens` are those of each step's complete rows."""
    command = [
        sys.executable,
        "-m",
        "axolotl.cli.main",
        "train",
        str(RECIPES / f"{name}.yaml"),
        "--launcher",
        "python",
    ]
    offline = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
    runtime = re.search(r"'train_runtime': '?([0-9.]+)", done.stdout + done.stderr)
    if done.returncode != 0 or runtime is None:
        raise SystemExit(f"axolotl train {name}.yaml failed:\n{done.stderr[-4000:]}")
    (FOLDER / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    state = json.loads(
        (FOLDER / name / f"checkpoint-{len(tokens)}" / "trainer_state.json").read_text(encoding="utf-8")
    )
    logs = [entry for entry in state["log_history"] if "loss" in entry]
    saved = [entry.get("prompt_tokens_saved_share", 0.0) for entry in logs]
    computed = [round(count * (1 - share)) for count, share in zip(tokens, saved, strict=True)]
    return Run([entry["loss"] for entry in logs], computed, float(runtime[1]) / len(logs))


def tokens_of_steps(rows: int) -> list[int]:
    """Return the tokens of each step's complete rows."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    lines = (FOLDER / "turns.jsonl").read_text(encoding="utf-8").splitlines()
    lengths = [len(tokenizer.apply_chat_template(json.loads(line)["messages"], return_dict=False)) for line in lines]
    return [sum(lengths[start : start + rows]) for start in range(0, len(lengths), rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    tokens = tokens_of_steps(rows=8)
    runs = {name: train(name, tokens) for name in ("before", "after", "conversations")}
    print("step" + "".join(f"  {name:>22}" for name in runs))
    for step in range(len(tokens)):
        cells = [f"  {run.losses[step]:8.6f} {run.tokens[step]:6,} tokens" for run in runs.values()]
        print(f"{step + 1:4}" + "".join(cells))
    before = runs["before"]
    for name, run in runs.items():
        apart = max(abs(one / other - 1) for one, other in zip(run.losses, before.losses, strict=True))
        ratio = sum(before.tokens) / sum(run.tokens)
        print(
            f"{name}: {run.seconds:.2f} s a step, {sum(run.tokens):,} tokens ({ratio:.2f} times fewer than before), "
            f"losses differ by at most {apart:.1e} of their value."
        )


if __name__ == "__main__":
    main()
