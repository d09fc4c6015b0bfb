"""Record which prompts a reward model was trained on, and notice when it scores them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mrt_plugin.groups import prompt_key
from mrt_plugin.groups.write import write_text

FILE = "training_prompts.txt"
"""In a reward model's folder: the `prompt_key` of each prompt that it was trained on, one per line."""


def write_training_prompts(folder: Path, prompts: Iterable[Any]) -> None:
    write_text(folder / FILE, "".join(f"{key}\n" for key in sorted({prompt_key(prompt) for prompt in prompts})))


def trained_on(name: str, prompts: Iterable[Any]) -> int:
    """Return how many of these prompts a reward model was trained on; 0 if its folder does not say."""
    path = Path(name) / FILE
    if not path.is_file():
        return 0
    known = set(path.read_text(encoding="utf-8").split())
    return sum(prompt_key(prompt) in known for prompt in prompts)
