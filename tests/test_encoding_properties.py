"""Encoding, for random conversations in every template family: the assistants' words are trained and nothing else."""

import re

import pytest
from helpers import tiny
from helpers.templates import FAMILIES, SPECIAL_TOKENS
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt_plugin.encoding import Encoder

KINDS = [{"kind": "byte_level"}, {"kind": "byte_level", "trim_offsets": True}, {"kind": "sentencepiece"}]
ENCODERS = {
    (family, number): Encoder(tiny.tokenizer(family=family, **kind))
    for family in FAMILIES
    for number, kind in enumerate(KINDS)
}
MARKUP = re.compile(
    "|".join(re.escape(token) for token in [*SPECIAL_TOKENS, "<think>", "</think>", "[INST]", "[/INST]"])
)

words = st.sampled_from(["apple", "user", "assistant", "final", "The", "capital", "model", "12", "ö", "你好", "🍐"])
texts = (
    st.lists(words | st.text(alphabet="aBz <|>[]/_:.\n\té", max_size=6), min_size=1, max_size=8)
    .map("".join)
    .filter(lambda text: text.strip() and not MARKUP.search(text))
)


@st.composite
def conversations(draw):
    """A prompt and a response, both as messages, alternating."""
    system = draw(st.none() | texts)
    prompt = [] if system is None else [{"role": "system", "content": system}]
    for _ in range(draw(st.integers(0, 2))):
        prompt += [{"role": "user", "content": draw(texts)}, {"role": "assistant", "content": draw(texts)}]
    prompt.append({"role": "user", "content": draw(texts)})
    response = [{"role": "assistant", "content": draw(texts)}]
    for _ in range(draw(st.integers(0, 2))):
        response += [{"role": "user", "content": draw(texts)}, {"role": "assistant", "content": draw(texts)}]
    return prompt, response


def expected(family: str, content: str, last: bool) -> str:
    """What a turn of the assistant trains, whitespace around it aside."""
    content = content.strip()
    before = {
        "qwen3": "<think>\n\n</think>\n\n" if last else "",
        "think_opener": "</think>\n\n" if last else "",
        "harmony": "<|channel|>final<|message|>",
    }
    end = FAMILIES[family].end or FAMILIES[family].eos_token
    if family == "harmony" and not last:
        end = "<|end|>"
    return before.get(family, "") + content + end


def bare(text: str) -> str:
    """The text with the whitespace around markup removed, which templates trim or add as they like."""
    return re.sub(rf"\s*({MARKUP.pattern})\s*", r"\1", text).strip()


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(ENCODERS)), conversations())
def test_the_trained_tokens_are_the_assistants_turns(which, conversation):
    encoder, (prompt, response) = ENCODERS[which], conversation
    pair = encoder.encode(prompt, response)
    turns = [message["content"] for message in response if message["role"] == "assistant"]
    runs = tiny.trained_runs(encoder.tokenizer, pair)
    assert [bare(run) for run in runs] == [
        bare(expected(which[0], turn, number == len(turns) - 1)) for number, turn in enumerate(turns)
    ]
    rendered = encoder.tokenizer.apply_chat_template(prompt + response, tokenize=False)
    assert list(pair.input_ids) == encoder.tokenizer(rendered, add_special_tokens=False)["input_ids"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.booleans(), st.text(alphabet="ab c\né你", max_size=8).map("a".__add__), texts)
def test_plain_text_is_trained_from_the_response_on(kind, add_bos, prompt, response):
    tokenizer = tiny.tokenizer(chat_template=None, add_bos=add_bos, **kind)
    pair = Encoder(tokenizer).encode(prompt, response)
    begin = list(pair.trained).index(True)
    assert all(pair.trained[begin:])
    assert pair.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(pair.input_ids, skip_special_tokens=True) == prompt + response
    # The first trained token is the first that reaches into the response.
    before = tokenizer.decode(pair.input_ids[:begin], skip_special_tokens=True)
    through = tokenizer.decode(pair.input_ids[: begin + 1], skip_special_tokens=True)
    assert len(before) <= len(prompt) < len(through)
