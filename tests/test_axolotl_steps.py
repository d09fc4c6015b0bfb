"""The steps of a run in Axolotl: how many there are, which groups they train, and what is logged before the first."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from helpers.axolotl_recipe import WORDS, groups, write_rows
from helpers.axolotl_runs import pieces

pytest.importorskip("axolotl")
pytestmark = pytest.mark.axolotl


def packing(sizes, batch_size=2, families=None, tree=None, **changes):
    from axolotl.utils.dict import DictDefault

    from mrt_plugin.axolotl.trainer import EpochPacking

    settings = {
        "seed": 3,
        "num_epochs": 4,
        "max_steps": None,
        "gradient_accumulation_steps": 2,
        "world_size": 1,
        "dataset_num_proc": 1,
        "sequence_len": 100,
        "mrt": {"row_length": None, "row_packing": True},
        "sample_packing_group_size": 100_000,
        "sample_packing_bin_size": 200,
        "sample_packing_mp_start_method": None,
        "sample_packing_sequentially": None,
        "curriculum_sampling": None,
    }
    return EpochPacking(np.array(sizes), DictDefault(settings | changes), batch_size, families=families, tree=tree)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("in_order", [False, True])
def test_every_row_is_in_every_epoch(processes, batch_size, in_order):
    sizes = np.random.default_rng(0).integers(5, 80, 60)
    changes = {"world_size": processes, "sample_packing_sequentially": in_order, "curriculum_sampling": in_order}
    packed, again = (packing(sizes, batch_size, **changes) for _ in range(2))
    assert len(packed) % processes == 0
    for epoch in range(4):
        batches = packed.batches(epoch)
        assert len(batches) == len(packed)
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        bins = [chosen for batch in batches for chosen in batch]
        assert max(sizes[chosen].sum() for chosen in bins) <= 100
        rows = [index for chosen in bins for index in chosen]
        assert sorted(rows) == list(range(60))
        assert (rows == list(range(60))) == in_order
        assert batches == again.batches(epoch), "an epoch's packing depends on the seed alone"
    assert (packed.batches(0) == packed.batches(1)) == in_order


def test_a_common_beginning_is_counted_once_per_bin():
    """Of 25 tokens, 20 are common to family 1: a row of 100 has sixteen of these instead of four."""
    families = np.array([1, 0] * 32), np.array([20, 0] * 32)
    packed = packing([25] * 64, 1, families)
    bins = [chosen for batch in packed.batches(0) for chosen in batch]
    assert sorted(index for chosen in bins for index in chosen) == list(range(64))
    assert sorted(map(len, bins)) == [4] * 8 + [16] * 2
    assert all(len({families[0][index] for index in chosen}) == 1 for chosen in bins)
    assert bins != sorted(bins, key=lambda chosen: families[0][chosen[0]]), "families are mixed over the epoch"
    assert packed.batches(1) != packed.batches(0)
    in_order = packing([25] * 64, 1, families, sample_packing_sequentially=True, curriculum_sampling=True)
    assert [index for batch in in_order.batches(0) for chosen in batch for index in chosen] == list(range(64))


@pytest.mark.parametrize("processes", [1, 3])
def test_documents_stay_together_with_group_by_prefix(processes):
    """Thirty documents of 60 tokens with questions of 10: four questions and their document fill a row of 100."""
    from mrt_plugin.layout.beginnings import BLOCK
    from mrt_plugin.trainer.prefix_order import PrefixTree

    documents = np.repeat(np.arange(30), 4)
    tree = PrefixTree([np.array([document]) for document in documents])
    packed = packing([BLOCK - 1 + 9] * 120 + [1] * 3, 2, tree=tree, world_size=processes)  # with three fillers
    again = packing([BLOCK - 1 + 9] * 120 + [1] * 3, 2, tree=tree, world_size=processes)
    assert len(packed) % processes == 0
    for epoch in range(4):
        batches = packed.batches(epoch)
        assert len(batches) == len(packed)
        assert batches == again.batches(epoch)
        bins = [chosen for batch in batches for chosen in batch]
        assert sorted(index for chosen in bins for index in chosen) == list(range(123))
        assert all(len({int(documents[index]) for index in chosen if index < 120}) <= 1 for chosen in bins)
        met = [int(documents[chosen[0]]) for chosen in bins if chosen[0] < 120]
        assert len(met) - len(set(met)) <= len(bins) - 30, "a document is only split to make epochs equally long"
        assert met != sorted(met)
    assert packed.batches(0) != packed.batches(1)


@pytest.mark.parametrize("packed", [True, False])
def test_a_recipe_that_groups_by_prefix_computes_documents_once(train, tmp_path, packed):
    """Two questions of each of 22 documents: each once in an epoch, in fewer tokens than without."""
    rows = []
    for document in range(22):  # each has less than 5 % of the groups
        text = " ".join(WORDS[(document * 7 + place * (document + 1)) % len(WORDS)] for place in range(120))
        for question in range(2):
            pool = [f"{word} {document} {question}." for word in ("Apple", "Pear")]
            rows.append({"prompt": f"{document} {text} Question {question}:", "responses": pool})
    path = write_rows(tmp_path / "documents.jsonl", rows)
    plain = {"datasets": [{"path": path, "ds_type": "json", "type": "mrt_plugin.axolotl.random_k"}]}
    plain |= {"num_epochs": 2, "sequence_len": 512, "sample_packing": packed}
    plain |= {"gradient_accumulation_steps": 1, "micro_batch_size": 1 if packed else 2}
    tokens = {}
    for grouped in (False, True):
        block = {"k": 2, "prefix_check": False, "group_by_prefix": grouped}
        seen, trainer, _ = train(1, **plain, output_dir=str(tmp_path / str(grouped)), mrt=block)
        assert seen == [2] * 44
        assert trainer.layout == "shared_prefix"
        logs = [log for log in trainer.state.log_history if "tokens_per_second" in log]
        tokens[grouped] = sum(1 - log["prompt_tokens_saved_share"] for log in logs) / len(logs)
    assert tokens[True] < 0.75 * tokens[False]


def test_an_order_beside_group_by_prefix_is_refused(read_recipe):
    for key in ("curriculum_sampling", "sample_packing_sequentially"):
        with pytest.raises(ValueError, match=f"{key}: it keeps the order of the rows, and mrt.group_by_prefix"):
            read_recipe(**{key: True, "sample_packing": True, "mrt": {"k": 2, "group_by_prefix": True}})


def test_epochs_that_max_steps_adds_are_as_long():
    sizes = np.random.default_rng(1).integers(5, 80, 40)
    packed = packing(sizes, 1, max_steps=200)
    epochs = math.ceil(200 / math.ceil(len(packed) / 2))
    assert epochs > 4
    for epoch in range(epochs):
        assert len(packed.batches(epoch)) == len(packed)


@pytest.fixture
def train(read_recipe, tmp_path, monkeypatch):
    """Train on a pool of the given size: how often each group was seen, the trainer, the most rows in a batch."""
    from axolotl.common.datasets import load_datasets
    from axolotl.train import setup_model_and_trainer

    from mrt_plugin.axolotl.trainer import foresee_steps

    def run(count, **changes):
        write_rows(tmp_path / "pool.jsonl", groups(count))
        plain = {"adapter": "lora", "load_in_4bit": False, "num_epochs": 3, "mrt": {"k": 2, "prefix_check": False}}
        cfg = read_recipe(**(plain | changes))
        meta = load_datasets(cfg=cfg)
        trainer = setup_model_and_trainer(cfg, meta)[0]
        inner, seen, rows = trainer.compute_loss, Counter(), []

        def compute_loss(model, inputs, *args, **kwargs):
            rows.append(len(inputs["input_ids"]))
            seen.update(pieces(inputs))
            return inner(model, inputs, *args, **kwargs)

        trainer.compute_loss = compute_loss
        trainer.train()
        assert (
            trainer.state.global_step
            == trainer.state.max_steps
            == foresee_steps(cfg, meta.train_dataset, trainer.layout)
        )
        of_group = [{seen[piece] for piece in pieces(trainer.data_collator([row]))} for row in trainer.train_dataset]
        assert all(len(times) == 1 for times in of_group)
        return [times.pop() for times in of_group], trainer, max(rows)

    return run


def announced(caplog):
    (line,) = [record for record in caplog.records if "This run trains" in record.getMessage()]
    trained, epochs, never, of = re.search(
        r"trains ([\d.]+) of ([\d.]+) epochs, (\d+) of (\d+) rows never", line.getMessage()
    ).groups()
    return float(trained), float(epochs), int(never), int(of), line.levelname


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (12, {"sample_packing": True, "sequence_len": 160}),  # Axolotl's steps: 1.67 of 3 epochs
        (9, {}),  # 2.4
        (12, {"sample_packing": True, "sequence_len": 160, "micro_batch_size": 1, "num_epochs": 1.5}),
    ],
    ids=["packed", "unpacked", "one and a half epochs"],
)
def test_a_run_trains_the_epochs_that_it_is_asked_for(train, caplog, count, changes):
    caplog.set_level("INFO", logger="mrt_plugin")
    seen, trainer, most_rows = train(count, **changes)
    epochs = trainer.args.num_train_epochs
    assert set(seen) == ({3} if epochs == 3 else {1, 2})
    assert most_rows <= trainer.args.per_device_train_batch_size
    trained, asked, never, of, level = announced(caplog)
    assert (asked, never, of, level) == (epochs, 0, count, "INFO")
    assert trained == pytest.approx(trainer.state.epoch, abs=1e-3)
    assert trained >= epochs


@pytest.mark.parametrize("packed", [True, False])
def test_groups_that_are_never_trained_are_announced(train, caplog, packed):
    caplog.set_level("INFO", logger="mrt_plugin")
    changes = {"sample_packing": True, "sequence_len": 160} if packed else {}
    seen, trainer, _ = train(14, max_steps=1, **changes)
    assert 0 < seen.count(0) < 14
    trained, asked, never, of, level = announced(caplog)
    assert (asked, never, of, level) == (3, seen.count(0), 14, "WARNING")
    assert trained == pytest.approx(trainer.state.epoch, abs=1e-3)


def test_a_share_of_the_steps_warms_up(train):
    _, trainer, _ = train(9, warmup_ratio=0.34, lr_scheduler="linear")
    assert trainer.args.get_warmup_steps(trainer.state.max_steps) == math.ceil(0.34 * 9)


def test_bins_of_a_sampler_are_rows(chat_tokenizer):
    """Best-fit decreasing over all bins at once would need another row."""
    from mrt_plugin.encoding.pair import Pair
    from mrt_plugin.layout.collator import GroupedResponseCollator
    from mrt_plugin.layout.group_row import build_group_row

    def row(tokens):
        pair = Pair([tokens] * tokens, [False] + [True] * (tokens - 1))  # no two rows begin alike
        return dict(build_group_row([pair], "token"))

    sizes = [[9, 7, 4], [8, 10, 2]]
    collator = GroupedResponseCollator(chat_tokenizer, row_length=20)
    assert len(collator([[row(size) for size in chosen] for chosen in sizes])["input_ids"]) == 2
    assert len(collator([row(size) for chosen in sizes for size in chosen])["input_ids"]) == 3


def test_a_selector_from_outside_chooses_what_is_trained(train, tmp_path, chat_tokenizer):
    file = tmp_path / "shortest.py"
    file.write_text("def shortest_k(pool, k):\n    return pool.lengths.argsort(kind='stable')[:k]\n")
    entry = {"path": "pool.jsonl", "ds_type": "json", "type": "mrt_plugin.axolotl.selector"}
    options = {"k": 2, "prefix_check": False, "selector": f"{file}:shortest_k"}
    seen, trainer, _ = train(6, num_epochs=1, datasets=[entry], mrt=options)
    assert seen == [1] * 6
    batch = trainer.data_collator(list(trainer.train_dataset))
    found = {chat_tokenizer.decode(piece).replace("<|im_end|>", "").strip() for piece in pieces(batch)}
    shortest = {text for row in groups(6) for text in sorted(row["responses"], key=lambda text: len(text.split()))[:2]}
    assert found == shortest


def test_a_recipe_without_groups_shares_a_common_system_text(train, tmp_path):
    """Axolotl's own dataset type and the plugin's line: the same losses, fewer tokens."""
    system = "Answer in one short sentence, name no source, and never repeat the question. " * 4
    chats = [
        [
            {"role": "system", "content": system},
            {"role": "user", "content": f"What is {n}?"},
            {"role": "assistant", "content": f"It is {n} of course."},
        ]
        for n in range(8)
    ]
    entry = {"path": write_rows(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats]), "ds_type": "json"}
    entry |= {"type": "chat_template", "field_messages": "messages"}
    plain = {"datasets": [entry], "chat_template": "tokenizer_default", "num_epochs": 2, "micro_batch_size": 4}
    plain |= {"sequence_len": 512, "logging_steps": 1}
    runs = {
        layout: train(1, **plain, mrt={"layout": layout, "row_packing": layout == "auto"})[1]
        for layout in ("auto", "expanded")
    }
    assert runs["auto"].layout == "shared_prefix"
    losses, saved = (
        {layout: [log[name] for log in run.state.log_history if name in log] for layout, run in runs.items()}
        for name in ("loss", "prompt_tokens_saved_share")
    )
    assert len(losses["auto"]) > 1
    assert losses["auto"] == pytest.approx(losses["expanded"], rel=1e-4)
    assert min(saved["auto"]) > 0.5
    assert set(saved["expanded"]) == {0.0}


def test_the_groups_of_a_packed_row_are_foreseen(train, tmp_path):
    """Rows with a common system text hold more groups than their lengths say."""
    system = {"role": "system", "content": "Answer in one short sentence, and never repeat the question. " * 6}
    chats = []
    for n in range(60):
        turns = [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]
        chats.append({"messages": [system, *turns]})
    entry = {"path": write_rows(tmp_path / "chats.jsonl", chats), "ds_type": "json", "type": "chat_template"}
    plain = {"datasets": [entry], "chat_template": "tokenizer_default", "mrt": {}, "micro_batch_size": 1}
    run = train(1, **plain, sample_packing=True, sequence_len=384, max_steps=2)[1]
    assert run.layout == "shared_prefix"
    bins = [chosen for batch in run._packing.batches(0) for chosen in batch]
    longest = max(len(tokens) for tokens in run.train_dataset["input_ids"])
    assert len(run.train_dataset) / len(bins) > 3 * (384 // longest)
    assert run.groups_per_batch(run.train_dataset) == pytest.approx(max(map(len, bins)), rel=0.35)
