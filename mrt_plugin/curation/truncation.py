"""`truncation`: responses that were cut off before they were finished."""

import re
from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field

from mrt_plugin.curation.rule import Group, GroupRule, Tools, Verdict
from mrt_plugin.groups.text import last_text

CUT = {"length", "max_tokens", "max_length", "model_length"}
"""`finish_reason` of an answer that ran out of tokens: OpenAI and vLLM, Anthropic and Gemini, Mistral."""

WHOLE = {
    "stop",
    "end_turn",
    "stop_sequence",
    "eos",
    "eos_token",
    "tool_calls",
    "function_call",
    "tool_use",
    "complete",
}
FILTERED = {"content_filter", "safety", "recitation", "refusal"}

_FENCE = re.compile(r"^(?:\s|>|[-*•]\s|\d+[.)]\s)*(`{3,}|~{3,})([^\n`]*)$")
_SENTENCE_END = re.compile(
    r"""(?<![.\s])[.!…]+["'”’)\]*_]*\s+(?=["'“‘(*_]*[^\W\d_])|[。！？]+["'”’」』）)]*|[।؟]\s*"""
)
_ABBREVIATION = re.compile(
    r"\b(?:mrs?|ms|dr|prof|st|jr|sr|vs|etc|no|nos|fig|eq|sec|ch|vol|pp?|ed|al|approx|inc|ltd|co|corp|dept|est|[a-z])\.\s*$",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*•+>|]|\[\d+\])\s+")
_NOT_PROSE = re.compile(r"[{}<>=;|\\$^#@]|://|^(?:\t| {4})|\w\(\w*\)|__|::")
_QUOTED_END = re.compile(r"""[.!?]["'”’]""")
_FINISHED = re.compile(r"""[.!?。！？।؟]["'”’」』）)*_]*\Z""")


class Truncation(GroupRule):
    """Drops responses that were cut off. Where a `finish_reason` was recorded it decides. Where none was, only strong
    evidence counts: a code block, or a `<think>` block, that was never closed; or a last line of prose in which a
    finished sentence is followed by an unfinished one. A missing full stop alone is no evidence: code, lists, tables,
    verse, signatures, links, formulas and one-word answers have none.
    """

    # Why: a cut answer teaches the model to stop in the middle of a sentence.

    name: ClassVar[str] = "truncation"

    unknown: Literal["drop", "flag", "keep"] = Field(
        "drop", description="What happens to a response that looks cut off and has no `finish_reason`."
    )

    def judge(self, group: Group, tools: Tools) -> Iterable[Verdict]:
        """By the record first, by the text otherwise."""
        for index, response in enumerate(group.responses):
            recorded = (group.finish_reasons[index] if group.finish_reasons else None) or ""
            reason = recorded.lower()
            if reason in CUT:
                yield Verdict("drop", f"finish_reason {reason}", index)
            elif reason in FILTERED:
                yield Verdict("drop", "stopped by a content filter", index)
            elif reason not in WHOLE and self.unknown != "keep":
                evidence = looks_cut(last_text(response))
                if evidence:
                    yield Verdict(self.unknown, evidence, index)


def looks_cut(text: str) -> str | None:
    """The evidence that a text was cut off, or None.

    Example:

    >>> looks_cut("They were happy. They were safe. And they lived ever aft")
    'ends inside a sentence'
    >>> looks_cut("def double(x):\\n    return 2 * x") is None
    True
    """
    text = text.rstrip()
    line = _ITEM.sub("", text.rsplit("\n", 1)[-1])
    if text.count("<think>") > text.count("</think>"):
        return "thinking not closed"
    if _FINISHED.search(line):
        return None
    if _open_fence(text):
        return "code block not closed"
    if _NOT_PROSE.search(line) or not (line[-1:].isalpha() or line[-1:] in {",", "-", "–", "—"}):
        return None
    ends = [match.end() for match in _SENTENCE_END.finditer(line) if not _ABBREVIATION.search(line[: match.end()])]
    last = line[ends[-1] :].lstrip("\"'“‘(*_") if ends else ""
    begun = last[:1].isalpha() and not last[0].islower()
    return "ends inside a sentence" if begun and not _QUOTED_END.search(last) else None


def _open_fence(text: str) -> bool:
    """Whether the text ends inside a fenced code block that has something in it (CommonMark 0.31, section 4.5)."""
    fence, has_content = "", False
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if not fence and match:
            fence, has_content = match[1], False
        elif fence and match and match[1].startswith(fence) and not match[2].strip():
            fence = ""
        elif fence and line.strip():
            has_content = True
    return bool(fence) and has_content
