"""`duplicate_prompts`: groups that ask the same thing."""

from typing import ClassVar

from datasets import Dataset
from pydantic import Field

from mrt_plugin.curation.near import NearIndex, prompt_signatures
from mrt_plugin.curation.rule import PoolRule, PoolVerdict, Tools
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.text import normalised, prompt_text


class DuplicatePrompts(PoolRule):
    """Keeps one group of those with nearly the same prompt: the one with the most responses, then by hash. A prompt
    that comes several times has several votes in the loss, and its copies may end on both sides of a later split. The
    similarity is the Jaccard similarity of character 5-grams, by MinHash and LSH; at 1, only prompts equal in all but
    case and white space count. At 0.8 a prompt of twenty words is near another that differs in one. Lower it for
    prompts built from a template only with care: what differs may be the question.
    """

    name: ClassVar[str] = "duplicate_prompts"

    threshold: float = Field(0.8, gt=0, le=1, description="The similarity from which two prompts are the same.")

    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolVerdict:
        """Largest groups first: keep a group unless its prompt is near one already kept."""
        verdict = PoolVerdict()
        exact = [digest(normalised(prompt_text(prompt)).encode(), size=16) for prompt in groups["prompt"]]
        sizes = [len(responses) for responses in groups["responses"]]
        hashes = [digest(b"curate", name.encode()) for name in groups["id"]]
        signatures = prompt_signatures(groups, tools.num_proc) if self.threshold < 1 else None
        index, seen = NearIndex(self.threshold), set()
        for position in sorted(range(len(groups)), key=lambda place: (-sizes[place], hashes[place])):
            if exact[position] in seen:
                verdict.dropped[position] = "repeats another prompt"
                continue
            seen.add(exact[position])
            if signatures is None:
                continue
            if index.near(signatures[position]):
                verdict.dropped[position] = "near another prompt"
            else:
                index.insert(position, signatures[position])
        return verdict
