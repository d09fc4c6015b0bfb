"""`duplicate_responses`: the same answer several times in one group."""

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from pydantic import Field

from mrt_plugin.curation.near import jaccard_matrix
from mrt_plugin.curation.rule import Group, GroupRule, Tools, Verdict
from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.groups.text import normalised


class DuplicateResponses(GroupRule):
    """Drops responses that are nearly the same as a better one of their group. Not among the default rules: where a
    pool was sampled from one model, how often an answer comes back is what the pool knows about its probability, and
    `random_k` without repeats learns a flatter distribution. Use it where frequencies mean nothing (answers of several
    models), or where K is spent on variety. Similarity is exact here, a group being small: the Jaccard similarity of
    character 5-grams, case and white space aside. At 1, only equal texts count. The higher score stays, then a choice
    by hash.
    """

    name: ClassVar[str] = "duplicate_responses"

    threshold: float = Field(0.9, gt=0, le=1, description="The similarity from which two responses are the same.")

    def judge(self, group: Group, tools: Tools) -> Iterable[Verdict]:
        """Best first: keep a response unless it is near one already kept."""
        if len(group.responses) == 1:
            return
        texts = [normalised(text) for text in group.texts]
        distinct = list(dict.fromkeys(texts))
        number = {text: index for index, text in enumerate(distinct)}
        place = [number[text] for text in texts]
        near = jaccard_matrix(distinct) >= self.threshold if self.threshold < 1 else np.eye(len(distinct), dtype=bool)
        kept: list[int] = []
        for index in _best_first(group):
            if any(near[place[index], place[other]] for other in kept):
                same = any(texts[index] == texts[other] for other in kept)
                yield Verdict("drop", "repeats another" if same else "near another", index)
            else:
                kept.append(index)


def _best_first(group: Group) -> list[int]:
    """Indices by falling score, then by a hash of what the response is: never by the pool's order."""
    scores = group.scores or [0.0] * len(group.responses)
    hashes = [digest(b"curate", group.id.encode(), canonical(response)) for response in group.responses]
    return sorted(range(len(scores)), key=lambda index: (-scores[index], hashes[index]))
