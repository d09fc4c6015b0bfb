"""Encoding with the chat templates that the families really use, as TRL ships them.

TRL's training versions of the templates mark what the assistant writes with `{% generation %}`: an independent answer
to compare with. What they mark and we leave out is what the generation prompt already gives, and whitespace.
"""

import re
from pathlib import Path

import pytest
import trl
from helpers import tiny

from mrt_plugin.encoding import Encoder

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
NEED_IMAGES = ("idefics3", "llava_next", "smolvlm")
FAMILIES = [
    path.name.removesuffix("_training.jinja")
    for path in sorted(TEMPLATES.glob("*_training.jinja"))
    if not path.name.startswith(NEED_IMAGES)
]
TOKEN = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|</?s>|<(?:start|end)_of_turn>|<\|?turn\|?>|<\|?channel\|?>|\[gMASK\]|<sop>"
)
THINKING_BY_TEMPLATE = {"gptoss": "thinking", "muse_glimmer": "thinking"}

QUESTION = {"role": "user", "content": "Name a fruit."}
ANSWER = {"role": "assistant", "content": "A pear."}


def tokenizer_for(template: str):
    tokenizer = tiny.tokenizer(chat_template=template, bos_token="<bos>", eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"extra_special_tokens": sorted(set(TOKEN.findall(template)))})
    return tokenizer


def test_there_are_templates():
    assert {"qwen3", "llama3", "gemma3", "gptoss", "deepseekv3", "phi3"} <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ([QUESTION], [ANSWER]),
        ([QUESTION], [ANSWER, {"role": "user", "content": "Another?"}, {"role": "assistant", "content": "A plum."}]),
        ([QUESTION, ANSWER, {"role": "user", "content": "Another?"}], [{"role": "assistant", "content": "A plum."}]),
    ],
    ids=["single", "two turns", "history"],
)
def test_ours_is_what_is_marked_less_the_generation_prompt(family, prompt, response):
    tokenizer = tokenizer_for((TEMPLATES / f"{family}_training.jinja").read_text())
    pair = Encoder(tokenizer).encode(prompt, response)
    marked = tokenizer.apply_chat_template(
        prompt + response, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    ids = marked["input_ids"]
    assert list(pair.input_ids)[: len(ids)] == ids  # one EOS more where the template writes no end token

    in_history = sum(message["role"] == "assistant" for message in prompt)
    theirs = tiny.trained_runs(tokenizer, _Marked(ids, marked["assistant_masks"]))[in_history:]
    ours = tiny.trained_runs(tokenizer, pair)
    assert len(ours) == len(theirs) == len(response) // 2 + 1
    asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    for our, their in zip(ours, theirs, strict=True):
        our, their = our.removesuffix("<|endoftext|>").strip(), their.removesuffix("<|endoftext|>").strip()
        assert their.endswith(our)
        given = their.removesuffix(our).strip()
        assert given in asked[-60:]
        assert our.startswith(
            ("A pl", "A pe", "</think>", "<think>", "<|channel|>final", "to=user", "<|START_RESPONSE")
        )


class _Marked:
    def __init__(self, input_ids, trained):
        self.input_ids, self.trained = input_ids, trained
