"""`refusals`: answers that decline to answer."""

import re
from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field, field_validator

from mrt_plugin.curation.rule import DropOrFlag, Group, GroupRule, Tools, Verdict

HEAD = 240
"""Characters at the start in which a refusal is looked for. Later ones mostly come with an answer."""

SPELLINGS = (("’", "'"), ("I'm ", "I am "), ("can't", "cannot"), ("can not", "cannot"), ("won't", "will not"))
"""What is made alike before the patterns are tried."""

_DO = (
    "assist|help(?! but)|provide|fulfill?|comply|answer|create|generate|write|engage|support|offer|give|share|produce|"
    "complete|discuss|participate|access|perform|continue|do (?:that|this|so)"
)
PATTERNS = (
    rf"\bI (?:cannot|will not|am (?:unable|not able) to) (?:\w+ ){{0,2}}?(?:{_DO})\b",
    r"\bas an? (?:AI|artificial intelligence|language model)\b[^.!?]{0,60}?\b"
    r"I (?:do not|don't|cannot|am (?:not|unable))",
    r"\bI am (?:just |only )?an? (?:AI|artificial intelligence|large language model|language model)\b[^.!?]{0,80}?"
    r"(?:cannot|don't|do not|unable|not able)",
    r"\A\W*(?:I am )?(?:really |very |so )?(?:sorry|afraid)\b[^.!?]{0,30}?\b"
    r"I (?:cannot|do not|don't|am (?:unable|not))",
    r"\bI must (?:respectfully |politely )?(?:decline|refuse)\b",
    r"\bI am not comfortable\b",
    # The same opening in other languages: an apology, then that it cannot be done.
    r"\A\W*我?很?(?:抱歉|对不起|不好意思)[^。！？]{0,40}?(?:不能|无法)",
    r"\A\W*申し訳(?:ございません|ありません)[^。！？]{0,80}?(?:できません|できかねます)",
    r"\A\W*(?:lo siento|lamento)[^.!?]{0,60}?no (?:puedo|podemos)",
    r"\A\W*(?:je suis )?désolée?[^.!?]{0,60}?ne p(?:eux|ouvons|uis) pas",
    r"\A\W*(?:es )?tut mir leid[^.!?]{0,60}?kann (?:ich )?",
    r"\A\W*(?:mi dispiace)[^.!?]{0,60}?non (?:posso|sono in grado)",
    r"\A\W*(?:desculpe|sinto muito)[^.!?]{0,60}?não posso",
    r"\A\W*(?:извините|простите|к сожалению)[^.!?]{0,60}?не мо(?:гу|жем)",
)
_REFUSAL = re.compile("|".join(PATTERNS), re.IGNORECASE)


class Refusals(GroupRule):
    """Flags responses that open with a refusal ("I'm sorry, but I can't help with that"). A refusal may be the right
    answer, so nothing is dropped unless asked for; with `action: drop`, groups in which at least `unless_share` of the
    responses refuse keep theirs, since the prompt then seems to call for it.
    """

    name: ClassVar[str] = "refusals"

    action: DropOrFlag = Field("flag", description="`flag` or `drop`.")
    unless_share: float = Field(
        0.5, ge=0, le=1, description="With `drop`, a group of which at least this share refuses is only flagged."
    )
    patterns: list[str] = Field(
        default_factory=list, description="More regular expressions, searched in the first 240 characters."
    )

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as problem:
                raise ValueError(f"{pattern!r} is not a regular expression: {problem}") from None
        return patterns

    def judge(self, group: Group, tools: Tools) -> Iterable[Verdict]:
        """Look at the start of each response; decide by how many of the group refuse."""
        found = [index for index, text in enumerate(group.texts) if refuses(text, self.patterns)]
        called_for = len(found) >= self.unless_share * len(group.responses)
        for index in found:
            yield Verdict("flag" if self.action == "flag" or called_for else "drop", "refusal", index)


def refuses(text: str, more: Iterable[str] = ()) -> bool:
    """Whether a text opens with a refusal.

    Example:

    >>> refuses("I’m sorry, but I can’t assist with that."), refuses("I'm sorry for your loss. Try to write to him.")
    (True, False)
    """
    head = text[:HEAD]
    for spelling, common in SPELLINGS:
        head = head.replace(spelling, common)
    return bool(_REFUSAL.search(head)) or any(re.search(pattern, head, re.IGNORECASE) for pattern in more)
