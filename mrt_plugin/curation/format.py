"""The rule `format`: clean the ends of responses, and drop those with template tokens or broken characters."""

import re
from collections.abc import Iterable

from mrt_plugin.curation.rule import Decision, GroupRule, GroupView, Tools
from mrt_plugin.encoding.encoder import special_token_texts
from mrt_plugin.groups.messages import response_text
from mrt_plugin.groups.text import edit_response, prompt_text

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
        """Clean each response, then judge the result."""
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
            cleaned = edit_response(response, lambda said: clean(said, tokens))
            said = text if cleaned is response else response_text(cleaned)
            if not said.strip():
                yield Decision("drop", "nothing left", index)
            elif any(token in said for token in inside):
                yield Decision("drop", "template token inside", index)
            elif "\ufffd" in said:
                yield Decision("drop", "replacement character", index)
            elif cleaned != response:
                yield Decision("change", _what_changed(text, said), index, cleaned)
            elif _NEXT_TURN.search(said):
                yield Decision("flag", "runs on into another turn", index)
            elif _MOJIBAKE.search(said):
                yield Decision("flag", "looks wrongly decoded", index)


def clean(text: str, tokens: list[str]) -> str:
    """Remove a role label, template tokens at the ends, blank lines at the start and white space at the end.

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
            if token != "<s>" or "</s>" not in text:  # together they are HTML for struck text
                text = text.removeprefix(token)
    return text


def _what_changed(old: str, new: str) -> str:
    return "white space" if "".join(old.split()) == "".join(new.split()) else "label or template token at an end"
