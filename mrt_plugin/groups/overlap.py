"""Find prompts that are both in the training data and in a held-out set."""

from collections.abc import Iterator
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


def overlap_problem(train: Dataset, held_out: Dataset, name: str = "the held-out data") -> str | None:
    """Return the problem and its remedy if prompts of groups or prepared rows are on both sides, else None."""
    ours = dict.fromkeys(_names(held_out))
    found = {prompt for prompt in _names(train) if prompt in ours}
    shared = [prompt.partition(" ")[2] for prompt in ours if prompt in found]
    if not shared:
        return None
    examples = ", ".join(map(repr, shared[:3])) + ", ..." * (len(shared) > 3)
    return (
        f"{len(shared):,} of the {len(ours):,} prompts of {name} are also in the training data, so its loss would "
        f"not be held out: {examples}. Remove them from one of the two, or split the data by prompt: "
        "`mrt select --held-out 0.1`, or in an Axolotl recipe `val_set_size: 0.1` in place of test_datasets."
    )


def refuse_overlap(train: Dataset, held_out: Dataset | dict[str, Dataset] | None) -> None:
    """Raise ValueError if held-out data would be trained on. `held_out` has the form that a trainer takes."""
    for name, dataset in (held_out if isinstance(held_out, dict) else {"": held_out}).items():
        called = f"the evaluation set {name!r}" if name else "the evaluation data"
        if dataset is not None and (problem := overlap_problem(train, dataset, called)):
            raise ValueError(problem)


def _names(dataset: Dataset) -> Iterator[str]:
    column = PROMPT_NAME if PROMPT_NAME in dataset.column_names else "prompt"
    if column not in dataset.column_names:
        return
    for batch in dataset.select_columns([column]).iter(1024):
        values = (value for value in batch[column] if value is not None)
        yield from map(prompt_name, values) if column == "prompt" else values
