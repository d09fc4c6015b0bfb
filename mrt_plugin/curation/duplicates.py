"""The rules `duplicate_responses` and `duplicate_prompts`: keep one of several texts that are nearly the same."""

from collections.abc import Iterable

import numpy as np
from datasets import Dataset
from pydantic import Field

from mrt_plugin.curation.near import NearIndex, jaccard_matrix, prompt_signatures
from mrt_plugin.curation.rule import Decision, GroupRule, GroupView, PoolDecisions, PoolRule, Tools
from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.groups.text import normalised, prompt_text


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
        place_of = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        place = [place_of[text] for text in texts]
        near = np.eye(len(place_of), dtype=bool)
        if self.threshold < 1:
            near = jaccard_matrix(list(place_of)) >= self.threshold
        scores = group.scores or [0.0] * len(texts)
        hashes = [digest(b"curate", group.id.encode(), canonical(response)) for response in group.responses]
        kept: list[int] = []
        for index in sorted(range(len(texts)), key=lambda index: (-scores[index], hashes[index])):
            found = {place[other] for other in kept if near[place[index], place[other]]}
            if found:
                same = place[index] in found
                yield Decision("drop", "repeats another" if same else "near another", index)
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
            if signatures is None:
                continue
            if index.near(signatures[position]):
                decisions.dropped[position] = "near another prompt"
            else:
                index.insert(position, signatures[position])
        return decisions
