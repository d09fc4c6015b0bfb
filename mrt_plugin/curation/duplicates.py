"""Rules on texts that are nearly the same: `duplicate_responses`, `duplicate_prompts` and `leakage`."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datasets import Dataset
from pydantic import Field, field_validator

from mrt_plugin.curation.near import NearIndex, jaccard_matrix, near_any, prompt_signatures, signature
from mrt_plugin.curation.rule import Decision, DropOrFlag, GroupRule, GroupView, PoolDecisions, PoolRule, Tools
from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.groups.messages import normalised, prompt_text
from mrt_plugin.groups.sources import open_source
from mrt_plugin.places import check_data


class DuplicateResponses(GroupRule):
    """Drops responses that are nearly the same as a better response of their group (by score, then by hash). Not a
    default rule: in a pool sampled from one model, the number of copies of an answer shows its probability, and
    `random_k` then learns a flatter distribution. Use it where copies mean nothing (answers of several models) or
    for more variety.
    """

    threshold: float = Field(0.9, gt=0, le=1, description="From here two responses are the same; 1: equal texts only.")

    def judge(self, group: GroupView, tools: Tools) -> Iterable[Decision]:
        if len(group.responses) == 1:
            return
        texts = [normalised(text) for text in group.texts]
        distinct = list(dict.fromkeys(texts))
        place = [distinct.index(text) for text in texts]
        near = jaccard_matrix(distinct) >= self.threshold if self.threshold < 1 else np.eye(len(distinct), dtype=bool)
        scores = group.scores or [0.0] * len(place)
        hashes = [digest(b"curate", group.id.encode(), canonical(response)) for response in group.responses]
        kept: list[int] = []
        for index in sorted(range(len(place)), key=lambda index: (-scores[index], hashes[index])):
            found = {place[other] for other in kept if near[place[index], place[other]]}
            if found:
                yield Decision("drop", "repeats another" if place[index] in found else "near another", index)
            else:
                kept.append(index)


class DuplicatePrompts(PoolRule):
    """Keeps one group of several with nearly the same prompt: the one with the most responses, then by hash. A
    prompt that occurs several times counts several times in the loss, and a later split may put its copies on both
    sides. Be careful with prompts made from a template: the words that differ may be the question.
    """

    threshold: float = Field(0.8, gt=0, le=1, description="The similarity from which two prompts are the same.")

    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolDecisions:
        decisions = PoolDecisions()
        exact = [digest(normalised(prompt_text(prompt)).encode(), size=16) for prompt in groups["prompt"]]
        sizes = [len(responses) for responses in groups["responses"]]
        hashes = [digest(b"curate", name.encode()) for name in groups["id"]]
        signatures = prompt_signatures(groups, tools.num_proc) if self.threshold < 1 else None
        index, seen = NearIndex(self.threshold), set()
        for position in sorted(range(len(groups)), key=lambda place: (-sizes[place], hashes[place])):
            if exact[position] in seen:
                decisions.dropped[position] = "repeats another prompt"
                continue
            seen.add(exact[position])
            if signatures is not None and index.near(signatures[position]):
                decisions.dropped[position] = "near another prompt"
            elif signatures is not None:
                index.insert(position, signatures[position])
        return decisions


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
            check_data(file)
        return files

    def reads(self) -> list[Path]:
        return [Path(file) for file in self.files if Path(file).is_file()]

    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolDecisions:
        held_out = np.array([signature(text) for file in self.files for text in _prompts(file, self.column)])
        near = near_any(prompt_signatures(groups, tools.num_proc), held_out, self.threshold)
        found = dict.fromkeys(np.flatnonzero(near).tolist(), "near a held-out prompt")
        return PoolDecisions(dropped=found) if self.action == "drop" else PoolDecisions(flagged=found)


def _prompts(file: str, column: str) -> list[str]:
    texts = []
    problems, rows = open_source(file)
    for place, row in rows:
        if isinstance(row.get(column), str | list):
            texts.append(prompt_text(row[column]))
        else:
            problems.add(place, column, f"no prompt here; the row has {', '.join(row) or 'nothing'}. Set `column`.")
    problems.raise_any()
    return texts
