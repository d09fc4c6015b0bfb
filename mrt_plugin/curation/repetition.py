"""`repetition`: responses that go round in circles."""

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from pydantic import Field

from mrt_plugin.curation.rule import DropOrFlag, Group, GroupRule, Tools, Verdict
from mrt_plugin.groups.text import units

SPAN = 15
"""Words in a repeated run."""


class Repetition(GroupRule):
    """Drops a response when too much of it says again what it has said before: the share of its words (in scripts
    without spaces, characters) that lie in a run of fifteen which occurred earlier in it. Texts under `min_words` are
    left alone: a short answer has reason to repeat the question's words. So do songs and worked sums, which is why the
    bound is high: on real pools 0.6 finds loops and little else.
    """

    name: ClassVar[str] = "repetition"

    share: float = Field(0.6, gt=0, le=1, description="The share of repeated words from which a response is dropped.")
    min_words: int = Field(50, ge=SPAN, description="Shorter responses are not judged.")
    action: DropOrFlag = Field("drop", description="`drop` or `flag`.")

    def judge(self, group: Group, tools: Tools) -> Iterable[Verdict]:
        """Each response for itself."""
        for index, text in enumerate(group.texts):
            words = units(text)
            if len(words) >= self.min_words and repeated_share(words) >= self.share:
                yield Verdict(self.action, "repeats itself", index)


def repeated_share(words: list[str]) -> float:
    """The share of words that lie in a run of fifteen words which occurred before.

    Example:

    >>> repeated_share("round and round the garden went the bear as happy as a bear can be".split() * 4)
    0.75
    """
    if len(words) <= SPAN:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    repeated = np.zeros(len(words), dtype=bool)
    for start in range(len(words) - SPAN + 1):
        run = tuple(words[start : start + SPAN])
        if run in seen:
            repeated[start : start + SPAN] = True
        seen.add(run)
    return float(repeated.mean())
