"""Find prompts that are also in a benchmark (the rule `leakage`), or on the other side of a split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from pydantic import Field, field_validator

from mrt_plugin.curation.near import near_any, prompt_signatures, signature
from mrt_plugin.curation.rule import DropOrFlag, PoolDecisions, PoolRule, Tools
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import response_text
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.sources import open_source
from mrt_plugin.groups.text import normalised, prompt_text


class Leakage(PoolRule):
    """Drops groups whose prompt is nearly the same as a prompt of a benchmark or of another held-out set. The
    files may have any format that `load_groups` reads; a prompt column is enough.
    """

    files: list[str] = Field(min_length=1, description="The files with the prompts that must not be trained on.")
    column: str = Field("prompt", description="The column of the prompts: a string, or a list of messages.")
    threshold: float = Field(0.8, gt=0, le=1, description="The similarity from which two prompts are the same.")
    action: DropOrFlag = Field("drop", description="`drop` or `flag`.")

    @field_validator("files")
    @classmethod
    def _exist(cls, files: list[str]) -> list[str]:
        for file in files:
            if Path(file).suffix and not Path(file).exists():
                raise ValueError(f"there is no file {file} (looked in {Path(file).absolute().parent}).")
        return files

    def reads(self) -> list[Path]:
        return [Path(file) for file in self.files if Path(file).is_file()]

    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolDecisions:
        held_out = np.array([signature(text) for file in self.files for text in _prompts(file, self.column)])
        near = near_any(prompt_signatures(groups, tools.num_proc), held_out, self.threshold)
        found = dict.fromkeys(np.flatnonzero(near).tolist(), "near a held-out prompt")
        return PoolDecisions(dropped=found) if self.action == "drop" else PoolDecisions(flagged=found)


def _prompts(file: str, column: str) -> list[str]:
    problems, texts = Problems(file), []
    for place, row in open_source(file, "train").rows(problems):
        if isinstance(row.get(column), str | list):
            texts.append(prompt_text(row[column]))
        else:
            problems.add(place, column, f"no prompt here; the row has {', '.join(row) or 'nothing'}. Set `column`.")
    problems.raise_any()
    return texts


@dataclass(frozen=True)
class LeakageReport:
    """The overlap of a training set and a held-out set: groups with a prompt near one of the other side."""

    train_groups: int
    held_out_groups: int
    near_train_groups: int
    near_held_out_groups: int
    shared_responses: int
    """Held-out responses that are also in the training set, apart from case and white space. Short answers often
    are."""
    examples: list[str]
    """The ids of up to five of the near training groups."""

    def summary(self) -> str:
        """Return one line for people."""
        return (
            f"leakage: {self.near_train_groups:,} of {self.train_groups:,} training prompts are near a held-out one, "
            f"{self.near_held_out_groups:,} of {self.held_out_groups:,} held-out prompts near a training one; "
            f"{self.shared_responses:,} held-out responses are also in the training set."
        )


def measure_leakage(
    train: Dataset, held_out: Dataset, *, threshold: float = 0.8, num_proc: int | None = None
) -> LeakageReport:
    """Measure how much of a held-out set is also in the training set.

    `threshold` is the Jaccard similarity of character 5-grams from which two prompts are near.
    """
    signed_train, signed_held_out = (prompt_signatures(side, num_proc) for side in (train, held_out))
    near = near_any(signed_train, signed_held_out, threshold)
    answers = {name for batch in train["responses"] for name in map(_answer_key, batch)}
    return LeakageReport(
        len(train),
        len(held_out),
        int(near.sum()),
        int(near_any(signed_held_out, signed_train, threshold).sum()),
        sum(_answer_key(response) in answers for batch in held_out["responses"] for response in batch),
        [train[int(position)]["id"] for position in np.flatnonzero(near)[:5]],
    )


def _answer_key(response: Any) -> bytes:
    return digest(normalised(response_text(response)).encode())
