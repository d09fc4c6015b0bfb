"""`format`: clean what surrounds a response, drop what a chat template or a broken encoding left in it."""

import re
from collections.abc import Iterable
from typing import ClassVar

from mrt_plugin.curation.rule import Group, GroupRule, Tools, Verdict
from mrt_plugin.encoding.tokenizer import special_token_texts
from mrt_plugin.groups.text import edit_response, prompt_text

CONTROL_TOKENS = (
    "<|im_start|> <|im_end|> <|endoftext|> <|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> "
    "<|eot_id|> <|eom_id|> <start_of_turn> <end_of_turn> <bos> <eos> <s> </s> [INST] [/INST] <<SYS>> <</SYS>> "
    "<|user|> <|assistant|> <|system|> <|end|> <|return|> <|message|> <|channel|> <|start|> <|eot|> <|header_start|> "
    "<|header_end|> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|>"
).split()
"""Control tokens of common chat templates."""

ONLY_AT_THE_ENDS = {"<s>", "</s>", "<eos>", "<bos>"}
"""Tokens that mean something else inside a text: `<s>` is the HTML tag for struck text."""

_LABEL = re.compile(
    r"<\|im_start\|>assistant\s*\n|<\|assistant\|>\s*|<start_of_turn>model\s*\n|#+ ?(?:[Rr]esponse|[Aa]ssistant):\s*"
    r"|(?:assistant|ASSISTANT|Assistant):\s+"
)
_NEXT_TURN = re.compile(r"\n(?:### ?Instruction:|### ?(?:Human|User):|(?:Human|USER): .*\n+(?:Assistant|ASSISTANT):)")
_MOJIBAKE = re.compile("â€|Ã[\x80-\xbf©±¨¡³¶¼]|Â[\x80-\xbf°·«»]")


class Format(GroupRule):
    """Cleans the ends of a response (a role label, template tokens, blank lines, trailing spaces, `\\r\\n`), and drops
    one that still holds a template's control token or a replacement character. Flags responses that run on into the
    next turn or look wrongly decoded, prompts that hold control tokens, and groups in which some responses think
    (`<think>`) and others do not. Indentation at the start stays, since completions of code begin with it.
    """

    # Why: the chat template adds its own tokens. A second `<|im_end|>` inside the text teaches the model to write it.

    name: ClassVar[str] = "format"

    def judge(self, group: Group, tools: Tools) -> Iterable[Verdict]:
        """Clean, then look at what is left."""
        tokens = list(CONTROL_TOKENS)
        if tools.tokenizer is not None:
            tokens = list(dict.fromkeys([*tokens, *special_token_texts(tools.tokenizer)]))
        inside = [token for token in tokens if token not in ONLY_AT_THE_ENDS]
        thinks = [text.lstrip().startswith("<think>") for text in group.texts]
        prompt = prompt_text(group.prompt)
        if any(token in prompt for token in inside):
            yield Verdict("flag", "template token in the prompt")
        elif any(thinks) and not all(thinks):
            yield Verdict("flag", "thinking in some responses only")
        for index, (response, text) in enumerate(zip(group.responses, group.texts, strict=True)):
            cleaned = edit_response(response, lambda said: clean(said, tokens))
            said = text if cleaned is response else Group("", "", [cleaned]).texts[0]
            if not said.strip():
                yield Verdict("drop", "nothing left", index)
            elif any(token in said for token in inside):
                yield Verdict("drop", "template token inside", index)
            elif "\ufffd" in said:
                yield Verdict("drop", "replacement character", index)
            elif cleaned != response:
                yield Verdict("change", _what_changed(text, said), index, cleaned)
            elif _NEXT_TURN.search(said):
                yield Verdict("flag", "runs on into another turn", index)
            elif _MOJIBAKE.search(said):
                yield Verdict("flag", "looks wrongly decoded", index)


def clean(text: str, tokens: list[str]) -> str:
    """The text without role label, template tokens at its ends, blank lines before it and white space after it.

    Example:

    >>> clean("ASSISTANT: It is 4.</s>\\n", CONTROL_TOKENS)
    'It is 4.'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").removeprefix("\ufeff")
    before = None
    while text != before:
        before = text
        text = re.sub(r"\A(?:[ \t]*\n)+", "", text).rstrip()
        label = _LABEL.match(text)
        text = text[label.end() :] if label else text
        for token in tokens:
            text = text.removesuffix(token)
            if token != "<s>" or "</s>" not in text:  # which together strike a text through in HTML
                text = text.removeprefix(token)
    return text


def _what_changed(old: str, new: str) -> str:
    return "white space" if "".join(old.split()) == "".join(new.split()) else "label or template token at an end"
