"""The sequences of a response of several turns: each turn after what inference has, or all in one conversation.

The reference renders each turn alone, with the real templates that TRL ships.
"""

import logging
from itertools import pairwise

import pytest
from helpers import tiny
from helpers.templates import FAMILIES, NO_END
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoding_properties import ENCODERS, bare, conversations, expected
from test_encoding_real_templates import TEMPLATES, tokenizer_for

from mrt_plugin.encoding import Encoder, EncodingError, Pair
from mrt_plugin.encoding.encoder import merge_continued

THINKING = {
    "qwen3": "reasoning_content",
    "qwen3_5_think": "reasoning_content",
    "qwen3_5_nothink": None,
    "qwen3_6": "reasoning_content",
    "qwen3_instruct_2507": None,
    "gptoss": "thinking",
    "glm4moe": "reasoning_content",
    "deepseekv3": None,
    "deepseek_r1_distill": None,
    "llama3_1": None,
    "gemma3": None,
}
"""The families checked, and the field in which their templates read thinking."""
REAL = [
    pytest.param(TEMPLATES / f"{family}.jinja", field, id=family)
    for family, field in THINKING.items()
    if (TEMPLATES / f"{family}.jinja").is_file()
]
ASKED_FOR_THINKING = ("deepseekv3", "deepseek_r1_distill")
"""Their generation prompt opens a think block that a rendered answer does not have."""
NO_TOOLS = ("deepseek_r1_distill", "llama3_1", "gemma3")
"""Templates without tools, or that need `content: None` beside a call."""

TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look a word up.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    },
}
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a fruit."}]


def turn(text: str, field: str | None, thought: str, **more) -> dict:
    return {"role": "assistant", "content": text, **({field: thought} if field else {}), **more}


def told(field: str | None, *, tools: bool, arguments) -> list[dict]:
    """A response of three turns of the assistant, with a tool call or not."""
    second = {"role": "user", "content": "Another?"}
    last = turn("A plum.", field, "Small ones.")
    if not tools:
        more = {"role": "user", "content": "More?"}
        return [turn("A pear.", field, "Red ones."), second, last, more, turn("A fig.", field, "Soft ones.")]
    call = [{"type": "function", "function": {"name": "lookup", "arguments": arguments}}]
    called = turn("", field, "I look it up.", tool_calls=call)
    return [called, {"role": "tool", "content": "pear"}, turn("A pear.", field, "Found."), second, last]


@pytest.mark.parametrize(("template", "field"), REAL)
@pytest.mark.parametrize("tools", [False, True])
def test_each_turn_is_trained_as_it_is_asked_for(template, field, tools, caplog):
    family = template.stem
    if tools and family in NO_TOOLS:
        pytest.skip("its template has no tools")
    tokenizer = tokenizer_for(template.read_text())
    arguments = '{"what": "fruit"}' if family.startswith("deepseek") else {"what": "fruit"}
    response, schemas = told(field, tools=tools, arguments=arguments), [TOOL] if tools else None
    with caplog.at_level(logging.WARNING):
        (sequences,) = Encoder(tokenizer).encode_responses(PROMPT, [response], tools=schemas)
    messages = PROMPT + response

    def rendered(stop, asked):
        text = tokenizer.apply_chat_template(
            messages[:stop], tools=schemas, tokenize=False, add_generation_prompt=asked
        )
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    turns = [place for place in range(len(PROMPT), len(messages)) if messages[place]["role"] == "assistant"]
    for place in turns:
        asked, whole = rendered(place, True), rendered(place + 1, False)
        if family in ASKED_FOR_THINKING and messages[place - 1]["role"] == "user":
            assert sum(own.input_ids[: len(whole)] == whole for own in sequences) == 1
            continue
        (found,) = [own for own in sequences if trains_after(own, asked)]
        stop = found.trained[len(asked) :].index(False) + len(asked) if False in found.trained[len(asked) :] else None
        said = tokenizer.decode(found.input_ids[len(asked) : stop])
        assert messages[place]["content"] in said
        if field:
            assert messages[place][field] in said, "the turn's own thinking is trained"
        # What the template writes of the turn where it is the last one, and an end token if it writes none.
        plain = tokenizer.decode(whole)
        assert plain.rstrip().endswith(said.removesuffix(tokenizer.eos_token).rstrip())
    assert sum(len(tiny.trained_runs(tokenizer, own)) for own in sequences) == len(turns)
    assert ("context that inference does not have" in caplog.text) == (family in ASKED_FOR_THINKING)


def trains_after(pair: Pair, context: list[int]) -> bool:
    length = len(context)
    after = pair.trained[length - 1 : length + 1]
    return list(pair.input_ids[:length]) == context and list(after) == [False, True]


def test_the_families_named_are_there():
    assert {path.values[0].stem for path in REAL} >= {"qwen3", "qwen3_5_think", "gptoss", "glm4moe", "deepseekv3"}


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma", "smollm3"])
@pytest.mark.parametrize("think", [True, False])
def test_a_template_that_keeps_everything_gives_one_sequence(family, think, caplog):
    encoder = Encoder(tiny.tokenizer(family=family), chat_template_kwargs={"enable_thinking": think})
    said = "<think>Red.</think>" if family == "smollm3" and think else ""
    response = [turn(said + text, None, "") for text in ("A pear.", "A plum.", "A fig.")]
    response[1:1] = [{"role": "user", "content": "Another?"}]
    response[3:3] = [{"role": "user", "content": "More?"}]
    with caplog.at_level(logging.WARNING):
        turns = encoder.encode_responses(PROMPT, [response, "A pear."])
    assert turns == encoder.encode_responses(PROMPT, [response, "A pear."], "conversation")
    assert turns == [[pair] for pair in encoder.encode_group(PROMPT, [response, "A pear."])]
    assert len(tiny.trained_runs(encoder.tokenizer, turns[0][0])) == 3
    assert not caplog.text


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(ENCODERS)), conversations())
def test_every_turn_is_trained_once_and_as_a_last_turn(which, conversation):
    encoder, (prompt, response) = ENCODERS[which], conversation
    (sequences,) = encoder.encode_responses(prompt, [response])
    runs = [run for pair in sequences for run in tiny.trained_runs(encoder.tokenizer, pair)]
    said = [message["content"] for message in response if message["role"] == "assistant"]
    assert [bare(run) for run in runs] == [bare(expected(which[0], text, last=True)) for text in said]
    if FAMILIES[which[0]].prefix_preserving:
        assert sequences == encoder.encode_responses(prompt, [response], "conversation")[0]
    for before, after in pairwise(sequences):
        assert after.input_ids[: len(before.input_ids)] != before.input_ids, "merged"


def test_a_context_that_the_template_changes_is_kept_as_asked(caplog):
    """The system text moves to the last message, so it disappears as soon as the answer follows."""
    tokenizer = tiny.tokenizer(family="mistral")
    encoder = Encoder(tokenizer)
    with caplog.at_level(logging.WARNING):
        ((pair,),) = encoder.encode_responses(PROMPT, ["A pear."])
    assert tokenizer.decode(pair.input_ids) == "<s>[INST] Be brief.\n\nName a fruit. [/INST] A pear.</s>"
    assert tiny.trained_runs(tokenizer, pair) == [" A pear.</s>"]
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        encoder.encode_responses(PROMPT, ["A pear."], "conversation")
    assert "context that inference does not have" in caplog.text


def test_a_conversation_names_the_other_choice(caplog):
    encoder = Encoder(tiny.tokenizer(family="think_opener"))
    response = told(None, tools=False, arguments=None)
    with caplog.at_level(logging.WARNING):
        encoder.encode_responses(PROMPT, [response])
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        encoder.encode_responses(PROMPT, [response], "conversation")
    assert "turn_context: inference trains each turn after what inference has" in caplog.text


def test_each_turn_of_a_template_without_an_end_token_ends():
    tokenizer = tiny.tokenizer(chat_template=NO_END, eos_token="<|endoftext|>")
    response = [turn("A pear.", None, ""), {"role": "user", "content": "Another?"}, turn("A plum.", None, "")]
    (sequences,) = Encoder(tokenizer).encode_responses(PROMPT[1:], [response])
    runs = [tiny.trained_runs(tokenizer, pair) for pair in sequences]
    assert runs == [[" A pear.\n<|endoftext|>"], [" A plum.\n<|endoftext|>"]]


def test_thinking_that_the_template_always_drops_is_refused():
    encoder = Encoder(tiny.tokenizer(family="deepseek_r1"))
    response = [turn("<think>Red.</think>A pear.", None, ""), {"role": "user", "content": "Another?"}]
    response.append(turn("A plum.", None, ""))
    with pytest.raises(EncodingError, match="drops the thinking from the response"):
        encoder.encode_responses(PROMPT, [response])
    assert len(encoder.encode_responses(PROMPT, [response], "conversation")[0]) == 1


def test_plain_text_has_one_sequence():
    encoder = Encoder(tiny.tokenizer(chat_template=None))
    assert encoder.encode_responses("The sea", [" is calm"]) == [encoder.encode_group("The sea", [" is calm"])]
    assert encoder.encode_responses("The sea", []) == []


def test_what_continues_is_merged_and_other_sequences_stay():
    one, longer = Pair([1, 2, 3], [False, False, True]), Pair([1, 2, 3, 4, 5], [False] * 4 + [True])
    other = Pair([1, 2, 4, 6], [False] * 3 + [True])
    assert merge_continued([one, longer, other]) == [Pair([1, 2, 3, 4, 5], [False, False, True, False, True]), other]
    assert merge_continued([one, one]) == [one]
