"""Curation in a recipe: `mrt.curation`, for all datasets or one, after the held-out split and before selection."""

import json

import pytest
from helpers import messy
from helpers.axolotl_recipe import write_rows

from mrt_plugin.layout.group_row import prompt_length

pytest.importorskip("axolotl")
pytestmark = pytest.mark.axolotl


@pytest.fixture
def prepare(read_recipe):
    """Prepare a recipe's datasets as `axolotl preprocess` and `axolotl train` do."""
    from axolotl.common.datasets import load_datasets

    return lambda mrt, **changes: load_datasets(cfg=read_recipe(mrt=mrt, sequence_len=1024, **changes))


def ledgers(tmp_path):
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "mrt_curation").glob("*.json"))]


def trained_texts(dataset, tokenizer):
    return [tokenizer.decode([t for t in row["labels"] if t != -100]) for row in dataset]


def test_rules_come_before_selection(prepare, tmp_path, chat_tokenizer):
    write_rows(tmp_path / "pool.jsonl", messy.pool(12, n=4))
    prepared = prepare({"k": 4, "curation": ["default", {"refusals": {"action": "drop"}}]}).train_dataset
    (ledger,) = ledgers(tmp_path)
    assert ledger["dataset"] == str(tmp_path / "pool.jsonl")
    assert ledger["responses_in"] == 48
    assert 30 < ledger["responses_out"] < 48
    assert ledger["entries"][1]["reasons"] == {"drop: ends inside a sentence": 1}
    assert sum(len(row["segment_lengths"]) for row in prepared) == ledger["responses_out"]
    text = " ".join(trained_texts(prepared, chat_tokenizer))
    assert messy.REFUSAL not in text
    assert messy.CUT not in text
    assert messy.CODE in text


def test_lengths_are_those_of_the_runs_tokenizer(prepare, tmp_path, chat_tokenizer):
    pool = messy.pool(6, n=4)
    write_rows(tmp_path / "pool.jsonl", pool)
    lengths = sorted(
        len(chat_tokenizer(text, add_special_tokens=False)["input_ids"]) for row in pool for text in row["responses"]
    )
    bound = lengths[len(lengths) // 2]
    prepare({"k": 4, "curation": [{"token_length": {"response_max": bound}}]})
    (ledger,) = ledgers(tmp_path)
    assert ledger["responses_out"] == sum(length <= bound for length in lengths)
    assert ledger["entries"][0]["reasons"] == {"drop: response too long": 24 - ledger["responses_out"]}


def test_one_dataset_may_have_rules_of_its_own(prepare, tmp_path):
    paths = [write_rows(tmp_path / f"{name}.jsonl", messy.pool(size, n=4)) for name, size in (("a", 10), ("b", 8))]
    entries = [{"path": path, "ds_type": "json", "type": "mrt_plugin.axolotl.random_k"} for path in paths]
    own = [{"path": paths[1], "curation": [{"sample": {"groups": 12}}]}]
    prepared = prepare({"k": 2, "curation": ["truncation"], "datasets": own}, datasets=entries).train_dataset
    first, second = sorted(ledgers(tmp_path), key=lambda ledger: ledger["dataset"])
    assert [entry["rule"] for entry in first["entries"]] == ["truncation"]
    assert [entry["rule"] for entry in second["entries"]] == ["sample"]
    assert len(prepared) == 10 + 12


def test_held_out_prompts_are_taken_first_and_by_cluster(prepare, tmp_path, chat_tokenizer):
    rows = [
        {
            "prompt": messy.prompt(number) + " Thanks." * version,
            "responses": [messy.answer(number, version), messy.CUT],
        }
        for number in range(16)
        for version in range(2)
    ]
    write_rows(tmp_path / "pool.jsonl", rows)
    meta = prepare({"k": 2, "curation": ["truncation"]}, val_set_size=0.3)
    (ledger,) = ledgers(tmp_path)
    train, held_out = meta.train_dataset, meta.eval_dataset
    assert ledger["groups_in"] == len(train) == 32 - len(held_out)
    assert all(len(row["segment_lengths"]) == 1 for row in train), "curated"
    assert all(len(row["segment_lengths"]) == 2 for row in held_out), "not curated"
    sides = []
    for side in (train, held_out):
        prompts = [chat_tokenizer.decode(row["input_ids"][: prompt_length(row)]) for row in side]
        sides.append({prompt.split("user\n")[1].split("<|im_end|>")[0].replace(" Thanks.", "") for prompt in prompts})
    assert not sides[0] & sides[1]
    assert len(held_out) % 2 == 0


def test_a_changed_check_is_applied_anew(prepare, tmp_path):
    write_rows(tmp_path / "pool.jsonl", messy.pool(6, n=4))
    check = tmp_path / "mine.py"
    rules = [{"check": {"function": f"{check}:ok"}}]
    check.write_text("def ok(prompt, response):\n    return 'idea' not in response\n")
    first = prepare({"k": 4, "curation": rules}).train_dataset
    check.write_text("def ok(prompt, response):\n    return True\n")
    from mrt_plugin.extension import load_extension

    load_extension.cache_clear()  # as in another process
    second = prepare({"k": 4, "curation": rules}).train_dataset
    count = [sum(len(row["segment_lengths"]) for row in side) for side in (first, second)]
    assert count[0] < count[1] == 24


OUTSIDE = """
from mrt_plugin.curation import Decision, GroupRule


class Shorter(GroupRule):
    def judge(self, group, tools):
        return [Decision("drop", "long", place) for place, text in enumerate(group.texts) if len(text) > LIMIT]


def pool(row):
    yield {"prompt": row["q"], "responses": row["a"][:MOST]}
"""


def test_a_source_and_a_rule_of_the_users_and_their_changes(prepare, tmp_path):
    from mrt_plugin.extension import load_extension

    write_rows(tmp_path / "pool.jsonl", [{"q": f"Question {n}?", "a": ["a", "bb", "ccc", "dddd"]} for n in range(4)])
    mine = tmp_path / "mine.py"
    found = []
    for limit, most in ((3, 4), (3, 2), (1, 4)):
        mine.write_text(f"LIMIT, MOST = {limit}, {most}\n{OUTSIDE}")
        load_extension.cache_clear()  # as in another process
        block = {"k": 4, "source": f"{mine}:pool", "curation": [f"{mine}:Shorter"]}
        prepared = prepare(block).train_dataset
        found.append(sum(len(row["segment_lengths"]) for row in prepared))
    assert found == [12, 8, 4]


@pytest.mark.parametrize(
    ("curation", "message"),
    [
        (["refusal"], "did you mean refusals"),
        ([{"repetition": {"share": 3}}], r"curation\[0\] \(repetition\): share=3"),
        ("everything", "there is no curation rule 'everything'"),
        ([{"leakage": {"files": ["nowhere.jsonl"]}}], "there is no such file: nowhere.jsonl"),
    ],
)
def test_what_is_wrong_stops_the_recipe_at_once(prepare, curation, message):
    with pytest.raises(ValueError, match=message):
        prepare({"k": 2, "curation": curation})
