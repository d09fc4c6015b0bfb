"""Encoding: the tokens of a pair and which of them are trained, by hand-written expectations per template family."""

import logging
import pickle
from typing import Any

import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from helpers import tiny
from helpers.templates import NO_END, QWEN3
from transformers import ByT5Tokenizer

from mrt_plugin.encoding import Encoder, EncodingError, prepare_tokenizer


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


QUESTION = "Name a fruit."
CALL = [{"type": "function", "function": {"name": "lookup", "arguments": {"what": "fruit"}}}]


# What the whole text and each trained run must be, for one question and its answer.
SINGLE = {
    "chatml": ("<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n", "A pear.<|im_end|>", "\n"),
    "qwen3": (
        "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nA pear.<|im_end|>",
        "\n",
    ),
    "think_opener": (
        "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "\n</think>\n\nA pear.<|im_end|>",
        "\n",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nName a fruit.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "A pear.<|eot_id|>",
        "",
    ),
    "gemma": (
        "<bos><start_of_turn>user\nName a fruit.<end_of_turn>\n<start_of_turn>model\n",
        "A pear.<end_of_turn>",
        "\n",
    ),
    "mistral": ("<s>[INST] Name a fruit. [/INST]", " A pear.</s>", ""),
    "deepseek_r1": ("<|begin_of_sentence|><|User|>Name a fruit.<|Assistant|>", "A pear.<|end_of_sentence|>", ""),
    "harmony": (
        "<|start|>system<|message|>You are a model.<|end|><|start|>user<|message|>Name a fruit.<|end|>"
        "<|start|>assistant",
        "<|channel|>final<|message|>A pear.<|return|>",
        "",
    ),
}


@pytest.mark.parametrize("family", SINGLE)
@pytest.mark.parametrize("as_messages", [False, True])
def test_the_answer_and_its_end_token_are_trained(family, as_messages):
    tokenizer = tiny.tokenizer(family=family)
    before, said, after = SINGLE[family]
    prompt = [user(QUESTION)] if as_messages else QUESTION
    response = [assistant("A pear.")] if as_messages else "A pear."
    pair = Encoder(tokenizer).encode(prompt, response)
    assert tiny.trained_runs(tokenizer, pair) == [said]
    assert tokenizer.decode(pair.input_ids) == before + said + after
    assert list(pair.input_ids) == tokenizer(before + said + after, add_special_tokens=False)["input_ids"]


# Two turns of the assistant with a user's between them; thinking models drop the first turn's think block.
TWO_TURNS = {
    "chatml": ["A pear.<|im_end|>", "A plum.<|im_end|>"],
    "qwen3": ["A pear.<|im_end|>", "<think>\n\n</think>\n\nA plum.<|im_end|>"],
    "think_opener": ["A pear.<|im_end|>", "\n</think>\n\nA plum.<|im_end|>"],
    "llama3": ["A pear.<|eot_id|>", "A plum.<|eot_id|>"],
    "gemma": ["A pear.<end_of_turn>", "A plum.<end_of_turn>"],
    "mistral": [" A pear.</s>", " A plum.</s>"],
    "deepseek_r1": ["A pear.<|end_of_sentence|>", "A plum.<|end_of_sentence|>"],
    "harmony": ["<|channel|>final<|message|>A pear.<|end|>", "<|channel|>final<|message|>A plum.<|return|>"],
}


@pytest.mark.parametrize("family", TWO_TURNS)
def test_of_several_turns_only_the_assistants_are_trained(family):
    tokenizer = tiny.tokenizer(family=family)
    prompt = [system("Be brief."), user("Hi there"), assistant("Hello."), user(QUESTION)]
    response = [assistant("A pear."), user("Another?"), assistant("A plum.")]
    assert tiny.trained_runs(tokenizer, Encoder(tokenizer).encode(prompt, response)) == TWO_TURNS[family]


def test_tool_calls_are_trained_and_tool_results_are_not():
    tokenizer = tiny.tokenizer(family="qwen3")
    tools = [{"type": "function", "function": {"name": "lookup", "parameters": {}}}]
    response = [
        assistant(reasoning_content="I look it up.", tool_calls=CALL),
        {"role": "tool", "content": "a pear"},
        assistant("A pear."),
    ]
    encoder = Encoder(tokenizer)
    pair = encoder.encode(QUESTION, response, tools=tools)
    assert tiny.trained_runs(tokenizer, pair) == [
        "<think>\nI look it up.\n</think>\n\n\n<tool_call>\n"
        '{"name": "lookup", "arguments": {"what": "fruit"}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nA pear.<|im_end|>",
    ]
    assert "# Tools" in tokenizer.decode(pair.input_ids)
    assert (
        encoder.encode(
            QUESTION, response, tools='[{"type": "function", "function": {"name": "lookup", "parameters": {}}}]'
        )
        == pair
    )


def test_thinking_is_trained_as_a_field_and_as_text():
    tokenizer = tiny.tokenizer(family="qwen3")
    expected = ["<think>\nRed ones.\n</think>\n\nAn apple.<|im_end|>"]
    encoder = Encoder(tokenizer)
    for response in (
        [assistant("An apple.", reasoning_content="Red ones.")],
        "<think>Red ones.</think>An apple.",
        "<think>\nRed ones.\n</think>\n\nAn apple.",
    ):
        assert tiny.trained_runs(tokenizer, encoder.encode(QUESTION, response)) == expected


def test_what_the_generation_prompt_already_gives_is_not_trained():
    """With thinking switched off the prompt brings the empty think block, so the answer alone is left to learn."""
    tokenizer = tiny.tokenizer(family="qwen3")
    encoder = Encoder(tokenizer, chat_template_kwargs={"enable_thinking": False})
    pair = encoder.encode(QUESTION, "A pear.")
    assert tiny.trained_runs(tokenizer, pair) == ["A pear.<|im_end|>"]
    assert "<think>\n\n</think>\n\nA pear." in tokenizer.decode(pair.input_ids)


def test_tool_calls_and_thinking_where_the_prompt_is_no_prefix():
    # The generation prompt opens a think block that turns before the last question do not have.
    tokenizer = tiny.tokenizer(family="think_opener")
    response = [
        assistant(tool_calls=CALL),
        {"role": "tool", "content": "a pear"},
        assistant("A pear."),
        user("Another?"),
        assistant("A plum."),
    ]
    assert tiny.trained_runs(tokenizer, Encoder(tokenizer).encode(QUESTION, response)) == [
        '\n<tool_call>\n{"name": "lookup", "arguments": {"what": "fruit"}}\n</tool_call><|im_end|>',
        "A pear.<|im_end|>",
        "\n</think>\n\nA plum.<|im_end|>",
    ]
    # The generation prompt closes a think block that the response fills.
    tokenizer = tiny.tokenizer(family="qwen3")
    encoder = Encoder(tokenizer, chat_template_kwargs={"enable_thinking": False})
    pair = encoder.encode(QUESTION, "<think>Red ones.</think>An apple.")
    assert tiny.trained_runs(tokenizer, pair) == ["Red ones.\n</think>\n\nAn apple.<|im_end|>"]


def test_thinking_that_the_template_drops_is_an_error(caplog):
    encoder = Encoder(tiny.tokenizer(family="deepseek_r1"))
    with pytest.raises(EncodingError, match="drops the thinking.*<think>Red.*Remove.*Name a fruit"):
        encoder.encode(QUESTION, "<think>Red.</think>An apple.")
    # Of an earlier turn the model is never shown it again: that is told, not refused.
    response = [assistant("<think>Red.</think>An apple."), user("Another?"), assistant("A plum.")]
    with caplog.at_level(logging.WARNING):
        pair = encoder.encode(QUESTION, response)
    assert tiny.trained_runs(encoder.tokenizer, pair) == ["An apple.<|end_of_sentence|>", "A plum.<|end_of_sentence|>"]
    assert "drops the thinking of a response's earlier turns" in caplog.text


def test_a_reasoning_field_that_the_template_ignores_is_told_once(caplog):
    encoder = Encoder(tiny.tokenizer())
    with caplog.at_level(logging.WARNING):
        for text in ("A pear.", "A plum."):
            encoder.encode(QUESTION, [assistant(text, reasoning_content="Juicy ones.")])
    assert caplog.text.count("does not render the 'reasoning_content'") == 1


def test_a_prompt_that_reads_differently_alone_is_told_once(caplog):
    encoder = Encoder(tiny.tokenizer(family="deepseek_r1"))
    with caplog.at_level(logging.WARNING):
        encoder.encode_group(QUESTION, ["A pear.", "A plum."])
    assert caplog.text.count("'<think>\\n' became 'A pear.") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        Encoder(tiny.tokenizer(family="llama3")).encode_group(QUESTION, ["A pear.", "A plum."])
    assert not caplog.text


def test_a_template_without_an_end_token_gets_eos_once_at_the_end(caplog):
    tokenizer = tiny.tokenizer(chat_template=NO_END, eos_token="<|endoftext|>")
    encoder = Encoder(tokenizer)
    response = [assistant("A pear."), user("Another?"), assistant("A plum.")]
    with caplog.at_level(logging.WARNING):
        pair = encoder.encode(QUESTION, response)
        encoder.encode(QUESTION, response)
    assert tokenizer.decode(pair.input_ids) == (
        "User: Name a fruit.\nBot: A pear.\nUser: Another?\nBot: A plum.\n<|endoftext|>"
    )
    # The header's last space belongs to the token " A", which reaches into the turn.
    assert tiny.trained_runs(tokenizer, pair) == [" A pear.\n", " A plum.\n<|endoftext|>"]
    assert caplog.text.count("does not end an assistant's turn") == 1


@pytest.mark.parametrize(
    ("close", "trained"),
    [
        ("<|end|><|im_end|>", ["A pear.<|end|><|im_end|>", "<think></think>A plum.<|end|><|im_end|>"]),
        ("", ["A pear.", "<think></think>A plum.<|im_end|>"]),  # the next header is a special token, but not its end
    ],
)
def test_the_end_of_a_turn_that_reads_differently_as_the_last(close, trained):
    """The empty think block of the last turn alone means that no beginning of the conversation is one of its own."""
    template = (
        "{% for m in messages %}{{ '<|User|>' if m.role == 'user' else '<|Assistant|>' }}"
        "{{ '<think></think>' if loop.last and m.role == 'assistant' }}{{ m.content }}"
        "{% if m.role == 'assistant' %}CLOSE{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
    )
    tokenizer = tiny.tokenizer(chat_template=template.replace("CLOSE", close))
    response = [assistant("A pear."), user("Another?"), assistant("A plum.")]
    assert tiny.trained_runs(tokenizer, Encoder(tokenizer).encode(QUESTION, response)) == trained


def test_bos_is_the_templates_and_not_doubled():
    tokenizer = tiny.tokenizer(family="llama3")
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id  # a careless encoder would add a second
    ids = Encoder(tokenizer).encode(QUESTION, "A pear.").input_ids
    assert list(ids).count(tokenizer.bos_token_id) == 1


def test_eos_is_trained_where_it_also_pads():
    tokenizer = prepare_tokenizer(tiny.tokenizer(pad_token=None))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    pair = Encoder(tokenizer).encode("Name a fruit.<|im_end|>", "A pear.")
    marks = [
        trained for token, trained in zip(pair.input_ids, pair.trained, strict=True) if token == tokenizer.eos_token_id
    ]
    assert marks == [False, False, True]


def test_offsets_without_the_leading_space_find_the_same_tokens():
    for family in ("chatml", "mistral"):
        plain, trimmed = (tiny.tokenizer(family=family, trim_offsets=trim) for trim in (False, True))
        assert plain("a  b", return_offsets_mapping=True) != trimmed("a  b", return_offsets_mapping=True)
        for response in ("A pear.", "  A   pear  ", "a\n  b"):
            assert Encoder(trimmed).encode(QUESTION, response) == Encoder(plain).encode(QUESTION, response)


def test_arrow_s_empty_fields_change_nothing():
    prompts = [
        [user(QUESTION)],
        [user("Look it up."), assistant(None, tool_calls=CALL), {"role": "tool", "content": "x"}],
    ]
    responses = [[[assistant("A pear.")]], [[assistant("A plum.", reasoning_content="Hm.")]]]
    dataset = Dataset.from_dict({"prompt": prompts, "responses": responses})
    assert dataset[0]["prompt"][0]["tool_calls"] is None  # Arrow gave every message every field
    template = QWEN3.replace("message.reasoning_content is string", "'reasoning_content' in message")
    encoder = Encoder(tiny.tokenizer(chat_template=template))
    for row, prompt, group in zip(dataset, prompts, responses, strict=True):
        assert encoder.encode_group(row["prompt"], row["responses"]) == encoder.encode_group(prompt, group)


def test_content_in_parts():
    tokenizer = tiny.tokenizer(
        chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part.text }}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    parts = [{"type": "text", "text": "A "}, {"type": "text", "text": "pear."}]
    pair = Encoder(tokenizer).encode(
        [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}], [{"role": "assistant", "content": parts}]
    )
    assert tiny.trained_runs(tokenizer, pair) == ["A pear.<|im_end|>"]


def test_a_group_is_its_pairs():
    encoder = Encoder(tiny.tokenizer(family="qwen3"))
    responses = ["A pear.", [assistant("A plum.")], [assistant("An apple."), user("Why?"), assistant("It is red.")]]
    assert encoder.encode_group(QUESTION, responses) == [encoder.encode(QUESTION, one) for one in responses]
    assert encoder.encode_group(QUESTION, []) == []


class TestPlain:
    """Strings without a chat template, as for base models."""

    @pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
    @pytest.mark.parametrize("add_bos", [False, True])
    @pytest.mark.parametrize("add_eos", [False, True])
    @pytest.mark.parametrize("written", ["", "<|bos|>"])
    @pytest.mark.parametrize("ending", ["", "<|endoftext|>"])
    def test_one_bos_at_most_and_one_eos(self, kind, add_bos, add_eos, written, ending):
        tokenizer = tiny.tokenizer(
            chat_template=None, kind=kind, bos_token="<|bos|>", add_bos=add_bos, add_eos=add_eos
        )
        pair = Encoder(tokenizer).encode(written + "The capital of France is", " Paris." + ending)
        text = tokenizer("The capital of France is Paris.", add_special_tokens=False)["input_ids"]
        if written:  # after a special token SentencePiece does not write the first word's space
            text = tokenizer("<|bos|>The capital of France is Paris.", add_special_tokens=False)["input_ids"][1:]
        bos = [tokenizer.bos_token_id] if add_bos or written else []
        assert list(pair.input_ids) == [*bos, *text, tokenizer.eos_token_id]
        assert [run.strip() for run in tiny.trained_runs(tokenizer, pair)] == ["Paris.<|endoftext|>"]

    def test_a_token_across_the_border_is_trained(self):
        tokenizer = tiny.tokenizer(chat_template=None)
        pair = Encoder(tokenizer).encode("The cap", "ital")
        assert tokenizer.convert_ids_to_tokens(pair.input_ids) == ["T", "he", "Ġcapital", "<|endoftext|>"]
        assert list(pair.trained) == [False, False, True, True]

    def test_plain_can_be_asked_for_where_there_is_a_template(self):
        tokenizer = tiny.tokenizer()
        pair = Encoder(tokenizer, prompt_format="plain").encode("The answer", " is 7.")
        assert tokenizer.decode(pair.input_ids) == "The answer is 7.<|im_end|>"

    def test_messages_are_refused(self):
        encoder = Encoder(tiny.tokenizer(), prompt_format="plain")
        for prompt, response in (([user("Hi")], "Hello."), ("Hi", [assistant("Hello.")])):
            with pytest.raises(EncodingError, match="prompt_format='plain' takes strings"):
                encoder.encode(prompt, response)

    def test_eos_is_needed(self):
        tokenizer = tiny.tokenizer(chat_template=None)
        tokenizer.eos_token = None
        with pytest.raises(EncodingError, match="set tokenizer.eos_token"):
            Encoder(tokenizer).encode("Hi", " there")

    @pytest.mark.parametrize("empty", ["", " \n"])
    def test_an_empty_response_is_an_error(self, empty):
        with pytest.raises(EncodingError, match="empty"):
            Encoder(tiny.tokenizer(chat_template=None)).encode("Hi", empty)


class TestBadInput:
    """Each names the place and the remedy."""

    def test_no_template(self):
        tokenizer = tiny.tokenizer(chat_template=None)
        with pytest.raises(EncodingError, match=r"no chat template.*tokenizer\.chat_template.*prompt_format='plain'"):
            Encoder(tokenizer, prompt_format="chat")
        for prompt, response in (([user("Hi")], "Hello."), ("Hi", [assistant("Hello.")])):
            with pytest.raises(EncodingError, match="The data holds messages, but the tokenizer has no chat template"):
                Encoder(tokenizer).encode(prompt, response)

    def test_unknown_format(self):
        with pytest.raises(EncodingError, match="prompt_format='jinja' is unknown: choose one of auto, chat, plain"):
            Encoder(tiny.tokenizer(), prompt_format="jinja")

    @pytest.mark.parametrize(
        ("prompt", "response", "message"),
        [
            ([], "Hello.", "The prompt must be a string or a list of messages"),
            ("Hi", [], "The response must be a string or a list of messages"),
            (7, "Hello.", "The prompt must be a string or a list of messages that is not empty, not 7"),
            ("Hi", [{"content": "Hello."}], "Message 0 of the response is .* `role`"),
            ([user("Hi"), "there"], "Hello.", "Message 1 of the prompt is 'there'"),
            ([{"role": "user", "content": 3}], "Hello.", "The content of message 0 of the prompt is a int"),
            ([user("Hi"), assistant("Hello.")], "Hello.", "The prompt ends with an assistant's turn"),
            (
                "Hi",
                [assistant("Hello."), user("Hm?")],
                "The response ends with a 'user' message .roles: assistant, user",
            ),
            ("Hi", [user("Hm?"), assistant("Hello.")], "The response begins with a 'user' message"),
            ("Hi", [assistant(None)], "message 0 of the response is empty"),
            ("Hi", " \n", "message 0 of the response is empty"),
            ("Hi", [assistant("Oh."), user("Hm?"), assistant("")], "message 2 of the response is empty"),
        ],
    )
    def test_messages(self, prompt, response, message):
        with pytest.raises(EncodingError, match=message):
            Encoder(tiny.tokenizer()).encode(prompt, response)

    def test_messages_that_do_not_alternate(self, caplog):
        prompt = [user("Hi"), user("Name a fruit.")]
        with pytest.raises(
            EncodingError, match="roles user, user.*TemplateError.*must alternate.*change the messages"
        ):
            Encoder(tiny.tokenizer(family="gemma")).encode(prompt, "A pear.")
        with caplog.at_level(logging.WARNING):  # other templates take them: said, not refused
            Encoder(tiny.tokenizer()).encode(prompt, "A pear.")
        assert "two 'user' messages in a row" in caplog.text

    def test_a_template_that_knows_no_tool_calls(self):
        response = [assistant("", tool_calls=CALL), {"role": "tool", "content": "a pear"}, assistant("A pear.")]
        with pytest.raises(EncodingError, match="does not render the call of 'lookup'.*tool_calls"):
            Encoder(tiny.tokenizer()).encode(QUESTION, response)

    def test_a_template_that_leaves_out_what_is_said(self):
        template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[:4] }}<|im_end|>\n{% endfor %}"
        with pytest.raises(EncodingError, match="does not render what the assistant says: 'A red pear.'"):
            Encoder(tiny.tokenizer(chat_template=template)).encode("Hi", "A red pear.")

    def test_a_turn_that_cannot_be_located(self):
        """A template whose prompt depends on the words of the answer."""
        template = "{% for m in messages %}{{ messages[-1].content | length }} {{ m.content }}<|im_end|>{% endfor %}"
        with pytest.raises(EncodingError, match="message 1 cannot be located in the rendered conversation"):
            Encoder(tiny.tokenizer(chat_template=template)).encode("Hi", "A pear that is red.")

    def test_a_slow_tokenizer(self):
        slow = ByT5Tokenizer()
        for action in (prepare_tokenizer, Encoder):
            with pytest.raises(EncodingError, match="ByT5Tokenizer is a slow tokenizer.*use_fast=True"):
                action(slow)


class TestPrepareTokenizer:
    """The pad token, made safe."""

    def test_eos_pads_where_there_is_no_pad_token(self, caplog):
        tokenizer = tiny.tokenizer(pad_token=None, padding_side="left")
        with caplog.at_level(logging.INFO):
            assert prepare_tokenizer(tokenizer) is tokenizer
        assert tokenizer.pad_token == "<|im_end|>"
        assert tokenizer.padding_side == "left"
        assert "its EOS '<|im_end|>' pads" in caplog.text

    def test_a_pad_token_stays(self, caplog):
        with caplog.at_level(logging.INFO):
            assert prepare_tokenizer(tiny.tokenizer()).pad_token == "<|pad|>"
        assert not caplog.text

    def test_neither_pad_nor_eos(self):
        tokenizer = tiny.tokenizer(pad_token=None)
        tokenizer.eos_token = None
        with pytest.raises(EncodingError, match="neither a pad nor an EOS token: set tokenizer.pad_token"):
            prepare_tokenizer(tokenizer)


def test_an_encoder_pickles_and_its_fingerprint_does_not_change_with_use():
    encoder = Encoder(tiny.tokenizer(family="deepseek_r1"))
    fresh = Hasher.hash(encoder)
    pair = encoder.encode(QUESTION, "A pear.")  # logs, and calls the tokenizer
    assert Hasher.hash(encoder) == fresh
    assert pickle.loads(pickle.dumps(encoder)).encode(QUESTION, "A pear.") == pair
    assert Hasher.hash(Encoder(encoder.tokenizer, prompt_format="plain")) != fresh
    assert Hasher.hash(Encoder(tiny.tokenizer(family="chatml"))) != fresh


@pytest.mark.processes
def test_in_a_map_over_processes():
    encoder = Encoder(tiny.tokenizer())
    dataset = Dataset.from_dict({"prompt": ["Hi", "Name a fruit."] * 3, "response": ["Hello.", "A pear."] * 3})
    mapped = dataset.map(_encode_row, fn_kwargs={"encoder": encoder}, num_proc=2)
    for row in mapped:
        pair = encoder.encode(row["prompt"], row["response"])
        assert (row["input_ids"], row["trained"]) == (pair.input_ids, pair.trained)


def _encode_row(row: dict[str, Any], encoder: Encoder) -> dict[str, Any]:
    pair = encoder.encode(row["prompt"], row["response"])
    return {"input_ids": pair.input_ids, "trained": pair.trained}
