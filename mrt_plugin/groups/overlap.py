"""Find prompts that are both in the training data and in a held-out set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from mrt_plugin.groups.keys import prompt_key
from mrt_plugin.groups.messages import message_text

PROMPT_NAME = "prompt_name"
"""The column of a prepared dataset with each row's `prompt_name`. The prompt cannot be recovered from the tokens."""


def prompt_name(prompt: Any) -> str:
    """Return the key of a prompt, a space, and its beginning for readers. A string is the same as one user message."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    opening = " ".join(message_text(messages[-1])[:240].split())[:60]
    return f"{prompt_key(messages)} {opening}"


@dataclass(frozen=True)
class PromptOverlap:
    """The number of distinct held-out prompts, and the beginnings of those that are also in the training data."""

    held_out_prompts: int
    shared: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.shared)

    def message(self, held_out: str = "the held-out data") -> str:
        """Explain the problem and the remedy. `held_out` is the user's name for the held-out set."""
        examples = ", ".join(repr(opening) for opening in self.shared[:3])
        return (
            f"{len(self.shared):,} of the {self.held_out_prompts:,} prompts of {held_out} are also in the training "
            f"data, so its loss would not be held out: {examples}{', ...' * (len(self.shared) > 3)}. Remove "
            "them from one of the two, or split the data by prompt: `mrt select --held-out 0.1`, or in an Axolotl "
            "recipe `val_set_size: 0.1` in place of test_datasets."
        )


def prompt_overlap(train: Dataset, held_out: Dataset) -> PromptOverlap:
    """Find the held-out prompts that are in the training data. Both are groups, or prepared rows with names."""
    ours = dict.fromkeys(_names(held_out))
    found = {name for name in _names(train) if name in ours}
    return PromptOverlap(len(ours), tuple(name.partition(" ")[2] for name in ours if name in found))


def refuse_overlap(train: Dataset, held_out: Dataset | dict[str, Dataset] | None) -> None:
    """Raise ValueError if held-out data would be trained on. `held_out` has the form that a trainer takes."""
    for name, dataset in (held_out if isinstance(held_out, dict) else {"": held_out}).items():
        overlap = dataset is not None and prompt_overlap(train, dataset)
        if overlap:
            raise ValueError(overlap.message(f"the evaluation set {name!r}" if name else "the evaluation data"))


def _names(dataset: Dataset) -> Iterator[str]:
    column = PROMPT_NAME if PROMPT_NAME in dataset.column_names else "prompt"
    if column not in dataset.column_names:
        return
    for batch in dataset.select_columns([column]).iter(1024):
        values = (value for value in batch[column] if value is not None)
        yield from map(prompt_name, values) if column == "prompt" else values
