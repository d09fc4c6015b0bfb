"""Encoding beside TRL's SFTTrainer on the same prompt-completion rows.

Where a template is prefix-preserving, and on plain strings, ids and trained tokens are TRL's, but for one thing: the
whitespace that a template writes after the end token (ChatML and Gemma: a newline) is trained by TRL and not here,
because generation has stopped before it. Where a template is not prefix-preserving, TRL's cut is off and ours is not.
"""

from typing import Any

import pytest
import trl
from datasets import Dataset
from helpers import tiny
from packaging.version import Version
from trl import SFTConfig, SFTTrainer

from mrt_plugin.encoding import Encoder
from mrt_plugin.encoding.pair import Pair

TRL_CUTS_AT_COMMON_PREFIX = Version(trl.__version__) >= Version("1.16")


def trl_pairs(tokenizer: Any, rows: list[dict[str, Any]], tmp_path: Any) -> list[Pair]:
    """The rows as TRL's trainer prepares them."""
    trainer = SFTTrainer(
        model=tiny.llama(tokenizer),
        args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    dataset = trainer.train_dataset
    return [Pair(row["input_ids"], [label != -100 for label in row["labels"]]) for row in dataset]


def without_whitespace_after_the_end(tokenizer: Any, pair: Pair) -> Pair:
    """A pair whose trailing whitespace tokens are not trained."""
    trained = list(pair.trained)
    for position in reversed(range(len(trained))):
        if not tokenizer.decode([pair.input_ids[position]]).isspace():
            break
        trained[position] = False
    return Pair(pair.input_ids, trained)


CHATS = [
    ([("user", "Name a fruit.")], "A pear."),
    ([("user", "Explain why the sky is blue.")], "  Light is scattered,\n\nand blue light the most. "),
    ([("system", "Be brief."), ("user", "Hi there"), ("assistant", "Hello."), ("user", "12 - 5?")], "7 äpfel 你好 🍐"),
]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
def test_chats_are_encoded_as_trl_does(family, kind, tmp_path):
    tokenizer = tiny.tokenizer(family=family, kind=kind)
    rows = [
        {
            "prompt": [{"role": role, "content": content} for role, content in prompt],
            "completion": [{"role": "assistant", "content": response}],
        }
        for prompt, response in CHATS
    ]
    encoder = Encoder(tokenizer)
    for row, theirs in zip(rows, trl_pairs(tokenizer, rows, tmp_path), strict=True):
        ours = encoder.encode(row["prompt"], row["completion"])
        assert ours == without_whitespace_after_the_end(tokenizer, theirs)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("add_bos", [False, True])
def test_plain_strings_are_encoded_as_trl_does(kind, add_bos, tmp_path):
    tokenizer = tiny.tokenizer(chat_template=None, kind=kind, add_bos=add_bos)
    rows = [
        {"prompt": "The capital of France is", "completion": " Paris."},
        {"prompt": "Question: 12 - 5?\nAnswer:", "completion": " 7\n\nbecause 12 - 5 = 7 "},
        {"prompt": "Name a fruit.\n", "completion": "A pear.<|endoftext|>"},
    ]
    encoder = Encoder(tokenizer)
    for row, theirs in zip(rows, trl_pairs(tokenizer, rows, tmp_path), strict=True):
        assert encoder.encode(row["prompt"], row["completion"]) == theirs


@pytest.mark.parametrize(
    ("family", "prompt", "right", "cut_at_common_prefix"),
    [
        # The generation prompt opens a think block that the answer lacks.
        (
            "deepseek_r1",
            [("user", "Name a fruit.")],
            "A pear.<|end_of_sentence|>",
            "A pear.<|end_of_sentence|>",
        ),
        # The system text disappears once an answer follows: the common prefix ends before the user's question.
        (
            "mistral",
            [("system", "Be brief."), ("user", "Name a fruit.")],
            " A pear.</s>",
            "Name a fruit. [/INST] A pear.</s>",
        ),
    ],
)
def test_where_the_prompt_is_no_prefix_only_the_answer_is_trained(
    family, prompt, right, cut_at_common_prefix, tmp_path
):
    tokenizer = tiny.tokenizer(family=family)
    messages = [{"role": role, "content": content} for role, content in prompt]
    row = {"prompt": messages, "completion": [{"role": "assistant", "content": "A pear."}]}
    [theirs] = trl_pairs(tokenizer, [row], tmp_path)
    ours = Encoder(tokenizer).encode(row["prompt"], row["completion"])
    assert tiny.trained_runs(tokenizer, ours) == [right]
    assert ours.input_ids == theirs.input_ids
    # The prompt alone has more tokens than the conversation, so a cut at its length trains nothing at all.
    expected = [cut_at_common_prefix] if TRL_CUTS_AT_COMMON_PREFIX else []
    assert tiny.trained_runs(tokenizer, theirs) == expected


def test_a_token_across_the_border_belongs_to_the_answer(tmp_path):
    """A cut at the prompt's length leaves the merged token, and with it the answer's first letters, untrained."""
    tokenizer = tiny.tokenizer(chat_template=None)
    row = {"prompt": "What is the cap", "completion": "ital?"}
    [theirs] = trl_pairs(tokenizer, [row], tmp_path)
    ours = Encoder(tokenizer).encode(row["prompt"], row["completion"])
    assert tiny.trained_runs(tokenizer, ours) == [" capital?<|endoftext|>"]
    assert ours.input_ids == theirs.input_ids
    assert (ours == theirs) is TRL_CUTS_AT_COMMON_PREFIX
