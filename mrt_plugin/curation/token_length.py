"""`token_length`: bounds on the length of prompts and of responses."""

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field

from mrt_plugin.curation.rule import Group, GroupRule, Tools, Verdict
from mrt_plugin.groups.text import prompt_text

BYTES_PER_TOKEN = 4
"""UTF-8 bytes that a token stands for, where no tokenizer is given: a usual figure for English text."""


class TokenLength(GroupRule):
    """Drops a group whose prompt, and a response that, is shorter or longer than the bounds. Lengths are in tokens of
    the run's tokenizer, without the chat template; where there is no tokenizer they are estimated as UTF-8 bytes / 4,
    and the ledger says so. The defaults fit a context of 4,096 tokens and refuse nothing for being short: `4` is a
    good answer to `2 + 2`. Pairs over `max_length` are dropped when they are encoded in any case; this rule does it
    before selection, so that no pick is wasted on them.
    """

    name: ClassVar[str] = "token_length"

    prompt_min: int = Field(1, ge=0, description="Least tokens of a prompt.")
    prompt_max: int | None = Field(2048, ge=1, description="Most tokens of a prompt.")
    response_min: int = Field(1, ge=0, description="Least tokens of a response.")
    response_max: int | None = Field(2048, ge=1, description="Most tokens of a response.")

    def judge(self, group: Group, tools: Tools) -> Iterable[Verdict]:
        """One tokenizer call for the whole group."""
        prompt, *lengths = token_counts([prompt_text(group.prompt), *group.texts], tools)
        note = "" if tools.tokenizer is not None else " (estimated)"
        reason = _outside(prompt, self.prompt_min, self.prompt_max)
        if reason:
            yield Verdict("drop", f"prompt {reason}{note}")
            return
        for index, length in enumerate(lengths):
            reason = _outside(length, self.response_min, self.response_max)
            if reason:
                yield Verdict("drop", f"response {reason}{note}", index)


def token_counts(texts: list[str], tools: Tools) -> list[int]:
    """Tokens of each text: counted, or estimated where there is no tokenizer."""
    if tools.tokenizer is None:
        return [-(-len(text.encode()) // BYTES_PER_TOKEN) for text in texts]
    return [len(ids) for ids in tools.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _outside(length: int, low: int, high: int | None) -> str | None:
    if length < low:
        return "too short"
    return "too long" if high is not None and length > high else None
