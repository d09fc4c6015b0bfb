"""Rules that read the text of a response: `format`, `truncation`, `repetition` and `refusals`."""

import re
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from mrt_plugin.curation.rule import Decision, DropOrFlag, GroupRule, GroupView, Tools
from mrt_plugin.encoding.encoder import special_token_texts
from mrt_plugin.groups.messages import message_text, prompt_text, response_text, units

CONTROL_TOKENS = (
    "<|im_start|> <|im_end|> <|endoftext|> <|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> "
    "<|eot_id|> <|eom_id|> <start_of_turn> <end_of_turn> <bos> <eos> <s> </s> [INST] [/INST] <<SYS>> <</SYS>> "
    "<|user|> <|assistant|> <|system|> <|end|> <|return|> <|message|> <|channel|> <|start|> <|eot|> <|header_start|> "
    "<|header_end|> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|>"
).split()
"""Control tokens of common chat templates."""

ONLY_AT_THE_ENDS = {"<s>", "</s>", "<eos>", "<bos>"}
"""Tokens with another meaning inside a text: `<s>` is the HTML tag for struck text."""

_LABEL = re.compile(
    r"<\|im_start\|>assistant\s*\n|<\|assistant\|>\s*|<start_of_turn>model\s*\n|#+ ?(?:[Rr]esponse|[Aa]ssistant):\s*"
    r"|(?:assistant|ASSISTANT|Assistant):\s+"
)
_NEXT_TURN = re.compile(r"\n(?:### ?Instruction:|### ?(?:Human|User):|(?:Human|USER): .*\n+(?:Assistant|ASSISTANT):)")
_MOJIBAKE = re.compile("â€|Ã[\x80-\xbf©±¨¡³¶¼]|Â[\x80-\xbf°·«»]")


class Format(GroupRule):
    """Cleans the ends of responses: role labels, template tokens, blank lines, trailing spaces and `\\r\\n` (but
    not indentation at the start, with which completions of code begin). Drops responses that still contain a
    control token of a chat template or a replacement character. Flags responses that continue with another turn or
    look wrongly decoded, prompts with control tokens, and groups in which only some responses think (`<think>`).
    """

    def judge(self, group: GroupView, tools: Tools) -> Iterable[Decision]:
        tokens = list(CONTROL_TOKENS)
        if tools.tokenizer is not None:
            tokens = list(dict.fromkeys([*tokens, *special_token_texts(tools.tokenizer)]))
        inside = [token for token in tokens if token not in ONLY_AT_THE_ENDS]
        thinks = [text.lstrip().startswith("<think>") for text in group.texts]
        prompt = prompt_text(group.prompt)
        if any(token in prompt for token in inside):
            yield Decision("flag", "template token in the prompt")
        elif any(thinks) and not all(thinks):
            yield Decision("flag", "thinking in some responses only")
        for index, (response, text) in enumerate(zip(group.responses, group.texts, strict=True)):
            cleaned = _cleaned(response, tokens)
            said = text if cleaned == response else response_text(cleaned)
            if not said.strip():
                yield Decision("drop", "nothing left", index)
            elif any(token in said for token in inside):
                yield Decision("drop", "template token inside", index)
            elif "\ufffd" in said:
                yield Decision("drop", "replacement character", index)
            elif cleaned != response:
                spaces = "".join(text.split()) == "".join(said.split())
                what = "white space" if spaces else "label or template token at an end"
                yield Decision("change", what, index, cleaned)
            elif _NEXT_TURN.search(said):
                yield Decision("flag", "runs on into another turn", index)
            elif _MOJIBAKE.search(said):
                yield Decision("flag", "looks wrongly decoded", index)


def _cleaned(response: Any, tokens: list[str]) -> Any:
    if isinstance(response, str):
        return clean(response, tokens)
    return [
        {**message, "content": clean(message["content"], tokens)}
        if message["role"] == "assistant" and isinstance(message.get("content"), str)
        else message
        for message in response
    ]


def clean(text: str, tokens: list[str]) -> str:
    """Remove a role label, template tokens at the ends, blank lines at the start and white space at the end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").removeprefix("\ufeff")
    before = None
    while text != before:
        before = text
        text = re.sub(r"\A(?:[ \t]*\n)+", "", text).rstrip()
        label = _LABEL.match(text)
        text = text[label.end() :] if label else text
        for token in tokens:
            text = text.removesuffix(token)
            if token != "<s>" or "</s>" not in text:  # together they are HTML for struck text
                text = text.removeprefix(token)
    return text


CUT = {"length", "max_tokens", "max_length", "model_length"}
"""The `finish_reason` of an answer that ran out of tokens: OpenAI and vLLM, Anthropic and Gemini, Mistral."""

WHOLE = set("stop end_turn stop_sequence eos eos_token tool_calls function_call tool_use complete".split())
"""Those of a finished answer."""

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
    """Drops responses that were cut off. A recorded `finish_reason` decides. Without one, only strong evidence
    counts: a code block or a `<think>` block that was never closed, or a last line of prose with an unfinished
    sentence after a finished one. A missing full stop alone is no evidence: code, lists, tables, verse and
    one-word answers have none.
    """

    unknown: Literal["drop", "flag", "keep"] = Field(
        "drop", description="What to do with a response that looks cut off and has no `finish_reason`."
    )

    def judge(self, group: GroupView, tools: Tools) -> Iterable[Decision]:
        for index, response in enumerate(group.responses):
            recorded = (group.finish_reasons[index] if group.finish_reasons else None) or ""
            reason = recorded.lower()
            if reason in CUT:
                yield Decision("drop", f"finish_reason {reason}", index)
            elif reason in FILTERED:
                yield Decision("drop", "stopped by a content filter", index)
            elif reason not in WHOLE and self.unknown != "keep":
                evidence = looks_cut(response if isinstance(response, str) else message_text(response[-1]))
                if evidence:
                    yield Decision(self.unknown, evidence, index)


def looks_cut(text: str) -> str | None:
    """Return the evidence that a text was cut off, or None."""
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
    """Return whether a text ends inside a fenced code block that is not empty (CommonMark 0.31, section 4.5)."""
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


SPAN = 15  # words of a repeated run


class Repetition(GroupRule):
    """Drops responses that repeat too much of their own text: the share of words in a run of fifteen that occurred
    earlier in the response (characters, in scripts without spaces). Songs and worked sums repeat themselves too,
    so the limit is high: on real pools, 0.6 finds loops and little else.
    """

    share: float = Field(0.6, gt=0, le=1, description="The share from which a response is dropped.")
    min_words: int = Field(50, ge=SPAN, description="Shorter responses are not judged.")
    action: DropOrFlag = Field("drop", description="`drop` or `flag`.")

    def judge(self, group: GroupView, tools: Tools) -> Iterable[Decision]:
        for index, text in enumerate(group.texts):
            words = units(text)
            if len(words) >= self.min_words and repeated_share(words) >= self.share:
                yield Decision(self.action, "repeats itself", index)


def repeated_share(words: list[str]) -> float:
    """Return the share of words that lie in a run of fifteen words that occurred before."""
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


SPELLINGS = (("’", "'"), ("I'm ", "I am "), ("can't", "cannot"), ("can not", "cannot"), ("won't", "will not"))
"""Replacements made before the patterns are searched."""

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
    """Flags responses that start with a refusal ("I'm sorry, but I can't help with that"), which may be the right
    answer. With `action: drop`, a group keeps its refusals if at least `unless_share` of its responses refuse.
    """

    action: DropOrFlag = Field("flag", description="`flag` or `drop`.")
    unless_share: float = Field(
        0.5, ge=0, le=1, description="With `drop`, only flag if at least this share of the group refuses."
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

    def judge(self, group: GroupView, tools: Tools) -> Iterable[Decision]:
        found = [index for index, text in enumerate(group.texts) if refuses(text, self.patterns)]
        called_for = len(found) >= self.unless_share * len(group.responses)
        for index in found:
            yield Decision("flag" if self.action == "flag" or called_for else "drop", "refusal", index)


def refuses(text: str, more: Iterable[str] = ()) -> bool:
    """Return whether a text starts with a refusal, by the patterns of the package or `more`."""
    head = text[:240]  # later refusals mostly come with an answer
    for spelling, common in SPELLINGS:
        head = head.replace(spelling, common)
    return bool(_REFUSAL.search(head)) or any(re.search(pattern, head, re.IGNORECASE) for pattern in more)
