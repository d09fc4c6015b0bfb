"""The datasets that Axolotl prepares with the plugin: which rows there are, and which tokens are trained."""

import pytest
from helpers.axolotl_recipe import PLUGIN, groups, loads_installed_plugins, write_rows

from mrt_plugin.groups.overlap import overlap_problem
from mrt_plugin.layout.group_row import sequences_of

pytest.importorskip("axolotl")
pytestmark = pytest.mark.axolotl

TYPE = "mrt_plugin.axolotl."


@pytest.fixture
def prepare(read_recipe):
    """Prepare a recipe's datasets as `axolotl preprocess` and `axolotl train` do."""
    from axolotl.common.datasets import load_datasets

    return lambda **changes: load_datasets(cfg=read_recipe(**changes))


def texts(dataset, tokenizer):
    """Of every row: its prompt, and what is trained of each response."""
    found = []
    for row in dataset:
        sequences = sequences_of(row)
        pieces = [tokenizer.decode(sequence.input_ids[sequence.trained]) for sequence in sequences]
        prompt = tokenizer.decode(sequences[-1].input_ids[~sequences[-1].trained])
        found.append((prompt.split("user\n")[1].split("<|im_end|>")[0], pieces))
    return found


def trained(response):
    """What is trained of a response: its text and the token that ends the turn."""
    return response + "<|im_end|>"


def test_training_and_held_out_prompts(prepare, tmp_path, chat_tokenizer):
    pool = groups(30)
    write_rows(tmp_path / "pool.jsonl", [*pool, *pool[:3]])  # three prompts come twice
    meta = prepare(val_set_size=0.3)
    train, test = texts(meta.train_dataset, chat_tokenizer), texts(meta.eval_dataset, chat_tokenizer)
    assert len(train) + len(test) == 33
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in test}, "no prompt is on both sides"
    assert 3 <= len({prompt for prompt, _ in test}) <= 16, "about 0.3 of 30 prompts"

    by_prompt = {row["prompt"]: [trained(text) for text in row["responses"]] for row in pool}
    for prompt, pieces in train:
        assert len(pieces) == 3
        assert set(pieces) < set(by_prompt[prompt])
    for prompt, pieces in test:
        assert pieces == by_prompt[prompt], "every held-out response is scored"


def test_the_split_does_not_depend_on_row_order_or_k(prepare, tmp_path, chat_tokenizer):
    pool = groups(20)
    write_rows(tmp_path / "pool.jsonl", pool)
    first = prepare(val_set_size=0.3).eval_dataset
    write_rows(tmp_path / "pool.jsonl", pool[::-1])
    second = prepare(val_set_size=0.3, mrt={"k": 1}).eval_dataset
    assert {prompt for prompt, _ in texts(first, chat_tokenizer)} == {p for p, _ in texts(second, chat_tokenizer)}


def test_a_changed_file_is_prepared_anew(prepare, tmp_path):
    write_rows(tmp_path / "pool.jsonl", groups(20))
    assert len(prepare().train_dataset) == 20
    write_rows(tmp_path / "pool.jsonl", groups(10))
    assert len(prepare().train_dataset) == 10


def test_several_datasets_with_types_and_options_of_their_own(prepare, tmp_path, chat_tokenizer):
    pool = groups(12)
    paths = [write_rows(tmp_path / f"{name}.jsonl", pool[i * 4 : i * 4 + 4]) for i, name in enumerate("abc")]
    meta = prepare(
        datasets=[
            {"path": paths[0], "ds_type": "json", "type": TYPE + "random_k"},
            {"path": paths[1], "ds_type": "json", "type": TYPE + "best_k"},
            {"path": paths[2], "ds_type": "json", "type": TYPE + "all"},
        ],
        mrt={"k": 3, "datasets": [{"path": paths[1], "k": 2}]},
    )
    found = dict(texts(meta.train_dataset, chat_tokenizer))
    assert [len(found[row["prompt"]]) for row in pool] == [3] * 4 + [2] * 4 + [5] * 4
    for row in pool[4:8]:
        assert found[row["prompt"]] == [trained(text) for text in row["responses"][-2:]], "the highest scores are last"


def test_ordinary_datasets_become_groups_of_one(prepare, tmp_path, chat_tokenizer):
    alpaca = [{"instruction": f"Name fruit {i}.", "input": "", "output": f"Fruit {i} is a pear."} for i in range(12)]
    chats = [
        {"messages": [{"role": "user", "content": f"Colour {i}?"}, {"role": "assistant", "content": f"Red {i}."}]}
        for i in range(12)
    ]
    meta = prepare(
        datasets=[
            {"path": "pool.jsonl", "ds_type": "json", "type": TYPE + "random_k"},
            {"path": write_rows(tmp_path / "alpaca.jsonl", alpaca), "ds_type": "json", "type": "alpaca"},
            {
                "path": write_rows(tmp_path / "chats.jsonl", chats),
                "ds_type": "json",
                "type": "chat_template",
                "field_messages": "messages",
            },
        ],
        val_set_size=0.3,
        chat_template="tokenizer_default",
        shuffle_merged_datasets=False,
        mrt={"k": 3, "loss_aggregation": "response"},
    )
    rows = [*meta.train_dataset, *meta.eval_dataset]
    singles = [row for row in rows if len(row["segment_lengths"]) == 1]
    assert len(singles) == 24
    assert len(meta.eval_dataset) > 3
    answers = set()
    for row in singles:
        labels = [token for token in row["labels"] if token != -100]
        answers.add(chat_tokenizer.decode(labels).replace("<|im_end|>", "").strip())
        assert row["segment_units"] == [1.0], "one vote per response"
        assert sum(row["loss_weights"]) == pytest.approx(1.0)
        assert row["loss_weights"][0] == 0
    assert answers == {f"Fruit {i} is a pear." for i in range(12)} | {f"Red {i}." for i in range(12)}


@pytest.mark.parametrize("layout", ["auto", "expanded"])
def test_packed_rows_fit_and_have_their_lengths(prepare, layout):
    meta = prepare(sample_packing=True, sequence_len=160, mrt={"k": 5, "layout": layout})
    expanded = layout == "expanded"
    assert max(meta.train_dataset["length"]) <= 160
    for row in meta.train_dataset:
        assert row["length"] == len(row["input_ids"]) == sum(row["segment_lengths"])
        assert (sum(row["shared_lengths"]) == 0) == (expanded or len(row["segment_lengths"]) == 1)
    assert sum(len(lengths) for lengths in meta.train_dataset["segment_lengths"]) == 100, "20 groups of 5"


def test_long_groups_are_split_and_long_pairs_dropped(prepare, tmp_path, caplog):
    caplog.set_level("INFO", logger="mrt_plugin")
    pool = groups(6)
    pool[0]["responses"][0] = "sea " * 200
    write_rows(tmp_path / "pool.jsonl", pool)
    meta = prepare(sequence_len=96, mrt={"k": 5})
    rows = meta.train_dataset["input_ids"]
    assert len(rows) > 6
    assert max(map(len, rows)) <= 96
    assert sum(len(lengths) for lengths in meta.train_dataset["segment_lengths"]) == 29
    assert "dropped 1 pairs longer than sequence_len=96" in caplog.text
    # On standard output once an earlier test had Axolotl set its loggers up, else with pytest.
    assert "micro_batch_size counts rows" in caplog.text


def test_long_pairs_can_be_an_error(prepare, tmp_path):
    pool = groups(6)
    pool[0]["responses"][:2] = ["sea " * 300, "moon " * 300]
    write_rows(tmp_path / "pool.jsonl", pool)
    with pytest.raises(ValueError, match=r"Pairs longer than 256 tokens: 2.*drop"):
        prepare(excess_length_strategy="raise", mrt={"k": 5})


def test_messages_of_different_fields_survive_the_way_through_axolotl(prepare, tmp_path, chat_tokenizer):
    """Arrow would force one type on the field `origin`, and Axolotl's own reading of the file fails."""
    pool = [
        {
            "prompt": [{"role": "user", "content": f"Look up {i}", "origin": i}],
            "responses": [
                [{"role": "assistant", "content": "one", "origin": {"model": "a"}}],
                [{"role": "assistant", "content": "two", "origin": "b"}],
            ],
        }
        for i in range(4)
    ]
    write_rows(tmp_path / "pool.jsonl", pool)
    found = dict(texts(prepare().train_dataset, chat_tokenizer))
    assert found == {f"Look up {i}": ["one<|im_end|>", "two<|im_end|>"] for i in range(4)}


# ------------------------------------------------------------------ mistakes


def test_the_plugin_line_forgotten(prepare):
    misspelled = [PLUGIN.replace("mrt_plugin", "mrt_plugins")]
    if loads_installed_plugins():
        assert prepare(plugins=None).train_dataset.num_rows == prepare(plugins=[PLUGIN]).train_dataset.num_rows
        with pytest.raises(ImportError, match="mrt_plugins"):
            prepare(plugins=misspelled)
        return
    for plugins in (None, misspelled):
        with pytest.raises(
            ImportError, match=r"needs the plugin[\s\S]*plugins:\n  - mrt_plugin.axolotl.MultiResponse"
        ):
            prepare(plugins=plugins)


def test_a_malformed_line_is_named(prepare, tmp_path):
    path = tmp_path / "pool.jsonl"
    write_rows(path, groups(4))
    path.write_text(path.read_text() + '{"prompt": "x", "responses": ["a"\n')
    with pytest.raises(ValueError, match=r"pool.jsonl: line 5: not JSON"):
        prepare()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [row.pop("scores") for row in rows], "best_k.*scores"),
        (lambda rows: rows.clear(), "empty"),
        (lambda rows: rows[2].update(responses="one"), "line 3.*responses"),
        (lambda rows: rows[1].update(prompt=" "), "line 2.*prompt"),
    ],
    ids=["no scores", "no rows", "no list", "no prompt"],
)
def test_bad_groups_are_named(prepare, tmp_path, change, message):
    rows = groups(4)
    change(rows)
    write_rows(tmp_path / "pool.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        prepare(datasets=[{"path": "pool.jsonl", "ds_type": "json", "type": TYPE + "best_k"}])


def test_no_prompt_held_out(prepare, tmp_path):
    write_rows(tmp_path / "pool.jsonl", groups(2))
    with pytest.raises(
        ValueError, match=r"val_set_size: 0.0001 leaves no prompt of 2 for the held_out part: raise it"
    ):
        prepare(val_set_size=0.0001)


def test_prompts_on_both_sides_are_found_in_prepared_rows_and_refused(read_recipe, tmp_path):
    from axolotl.common.datasets import load_datasets
    from axolotl.train import setup_model_and_trainer

    write_rows(tmp_path / "pool.jsonl", groups(12))
    test = write_rows(tmp_path / "test.jsonl", groups(14)[8:])
    cfg = read_recipe(test_datasets=[{"path": test, "ds_type": "json", "split": "train", "type": TYPE + "all"}])
    meta = load_datasets(cfg=cfg)
    problem = overlap_problem(meta.train_dataset, meta.eval_dataset)
    assert problem.startswith("4 of the 6 prompts")
    assert "'Write sentence 8 about" in problem
    with pytest.raises(ValueError, match="4 of the 6 prompts of the evaluation data are also in the training data"):
        setup_model_and_trainer(cfg, meta)


# ------------------------------------------------------------------ prepared data that is out of date

STRATEGY = """
from axolotl.prompt_strategies.alpaca_chat import load as chat

def load(tokenizer, cfg, ds_cfg=None):
    return chat(tokenizer, cfg, {"type": "alpaca"})
"""


def two_entries(folder):
    rows = [{"instruction": f"Name fruit {i}.", "input": "", "output": f"Fruit {i} is a pear."} for i in range(6)]
    return [
        {"path": "pool.jsonl", "ds_type": "json", "type": TYPE + "random_k"},
        {"path": write_rows(folder / "alpaca.jsonl", rows), "ds_type": "json", "type": "alpaca"},
    ]


def one_entry(folder):
    return two_entries(folder)[:1]


def folder_of_files(folder):
    parts = folder / "parts"
    if not parts.exists():
        parts.mkdir()
        write_rows(parts / "a.jsonl", groups(3))
    return [{"path": "parts", "data_files": "parts/*.jsonl", "ds_type": "json", "type": TYPE + "random_k"}]


@pytest.mark.parametrize(
    ("entries", "change"),
    [
        (two_entries, lambda entries, folder: {"datasets": entries[::-1]}),
        (two_entries, lambda entries, folder: {"shuffle_merged_datasets": False}),
        (two_entries, lambda entries, folder: {"shuffle_before_merging_datasets": True}),
        (one_entry, lambda entries, folder: {"curriculum_sampling": True}),
        (one_entry, lambda entries, folder: {"datasets": [{**entries[0], "shards": 2, "shards_idx": 1}]}),
        (folder_of_files, lambda entries, folder: write_rows(folder / "parts" / "b.jsonl", groups(5)) and {}),
    ],
    ids=["order", "shuffled", "shuffled before", "curriculum", "shards", "files by pattern"],
)
def test_a_change_is_prepared_anew(prepare, tmp_path, entries, change):
    """The rows of the second run are those that a folder without prepared data gives."""
    before = {"datasets": entries(tmp_path), "mrt": {"k": 2}}
    first = prepare(**before)
    after = before | change(before["datasets"], tmp_path)
    found = prepare(**after).train_dataset["input_ids"]
    assert found == prepare(**after, dataset_prepared_path=str(tmp_path / "fresh")).train_dataset["input_ids"]
    assert found != first.train_dataset["input_ids"]


def test_a_changed_strategy_of_ones_own_is_another_dataset(read_recipe, tmp_path, monkeypatch):
    import sys

    monkeypatch.syspath_prepend(tmp_path)
    names = []
    (tmp_path / "own_types").mkdir()
    for code in (STRATEGY, STRATEGY + "# changed\n"):
        (tmp_path / "own_types" / "chat.py").write_text(code)
        entries = [*one_entry(tmp_path), {**two_entries(tmp_path)[1], "type": "own_types.chat"}]
        names.append(read_recipe(datasets=entries).datasets[1].conversation)
    assert names[0] != names[1]
    del sys.modules["own_types.chat"], sys.modules["own_types"]
