"""`group_by_prefix`: prompts that begin alike are drawn into one micro-batch or packed row."""

import math
import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from helpers import tiny
from helpers.training import config, losses, make_groups
from torch.utils.data import BatchSampler, RandomSampler
from transformers import TrainerCallback

from mrt_plugin import MultiResponseSFTTrainer
from mrt_plugin.layout.beginnings import BLOCK, shared_paths
from mrt_plugin.layout.group_row import best_fit_decreasing, sequences_of
from mrt_plugin.layout.tree import build_tree
from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.trainer.layout_choice import sharing_of
from mrt_plugin.trainer.prefix_order import PrefixSampler, PrefixTree
from mrt_plugin.trainer.prepare import beginnings_of, prepare_groups

WORDS = "apple pear plum cherry sea moon river dog red green blue calm bright water light story".split()


def documents(count, questions, system="", length=160, responses=2, seed=0):
    """Groups in order of their documents: `questions` prompts for each."""
    random.seed(seed)
    rows = []
    for document in range(count):
        text = " ".join(random.choices(WORDS, k=length))
        for question in range(questions):
            pool = [f" {WORDS[(document + question + place) % 16]} {place}" for place in range(responses)]
            prompt = f"{system}Text {document}: {text}\nQuestion {question}:"
            rows.append({"id": f"{document}/{question}", "prompt": prompt, "responses": pool})
    return Dataset.from_list(rows)


def prepared(groups):
    options = MultiResponseOptions(selector="all")
    return prepare_groups(groups, tiny.tokenizer(), options, max_length=4096, seed=0)[0]


def paths_of(*families, system=0):
    """Paths of families of given sizes, below one node of `system` blocks that all rows share. 0: rows alone."""
    above, number = list(range(system)), system
    found = []
    for size in families:
        own = [] if size == 0 else [number, number + 1]
        found += [np.array(above + own, dtype=np.int64)] * max(size, 1)
        number += 2
    return found


def naive_shared(beginnings, least):
    """The numbers of blocks that `least` groups have in common with each group, by comparing all pairs."""
    return [
        max(
            blocks
            for blocks in range(len(one) // BLOCK + 1)
            if blocks == 0
            or sum(np.array_equal(one[: blocks * BLOCK], o[: blocks * BLOCK]) for o in beginnings) >= least
        )
        for one in beginnings
    ]


def test_shared_paths_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    trunk = rng.integers(0, 3, 5 * BLOCK)
    beginnings = [
        np.concatenate([trunk[: rng.integers(0, len(trunk))], rng.integers(0, 99, rng.integers(0, 150))])
        for _ in range(60)
    ]
    for share in (0.0, 0.3):
        paths = shared_paths(beginnings, share)
        assert [len(path) for path in paths] == naive_shared(beginnings, max(2, share * 60))
        for (one, first), (other, second) in combinations(zip(beginnings, paths, strict=True), 2):
            for place in range(min(len(first), len(second))):
                stop = (place + 1) * BLOCK
                assert (first[place] == second[place]) == np.array_equal(one[:stop], other[:stop])
    assert shared_paths([]) == []


class TestBatches:
    def batches(self, paths, size, seed=0):
        return PrefixTree(paths).batches(size, np.random.default_rng(seed))

    @pytest.mark.parametrize("system", [0, 2])
    @pytest.mark.parametrize("size", [1, 3, 4, 7])
    def test_every_row_is_in_one_batch(self, size, system):
        paths = paths_of(*range(9), 0, 0, 5, system=system)
        for seed in range(5):
            batches = self.batches(paths, size, seed)
            assert sorted(row for batch in batches for row in batch) == list(range(len(paths)))
            assert {len(batch) for batch in batches[:-1]} <= {size}
            assert 1 <= len(batches[-1]) <= size

    def test_a_document_is_in_as_few_batches_as_possible(self):
        families = np.repeat(np.arange(10), 8)
        for system in (0, 3):
            batches = self.batches(paths_of(*[8] * 10, system=system), 4)
            assert all(len(set(families[batch])) == 1 for batch in batches)
            batches = self.batches(paths_of(*[8] * 10, system=system), 6)  # 6 and 2 of each: three twos in a batch
            assert Counter(len(set(families[batch])) for batch in batches) == {1: 11, 3: 3}
            assert len(batches[-1]) == 2

    def test_questions_of_a_document_change_company_and_batches_change_places(self):
        paths = paths_of(*[8] * 6, 0, 0)
        one, other = self.batches(paths, 4, 1), self.batches(paths, 4, 2)
        assert one == self.batches(paths, 4, 1)
        assert {frozenset(batch) for batch in one} != {frozenset(batch) for batch in other}
        assert [batch[0] // 8 for batch in one] != sorted(batch[0] // 8 for batch in one)

    @pytest.mark.parametrize("system", [0, 3])
    def test_what_everybody_shares_changes_nothing_about_a_shuffle(self, system):
        """Any two of 12 rows are in one batch of 4 as often as any other two: in 3 of 11 epochs."""
        tree, epochs, met = PrefixTree(paths_of(*[0] * 12, system=system)), 3000, Counter()
        first = Counter()
        for seed in range(epochs):
            batches = tree.batches(4, np.random.default_rng(seed))
            met.update(pair for batch in batches for pair in combinations(sorted(batch), 2))
            first[batches[0][0]] += 1
        error = math.sqrt(3 / 11 * 8 / 11 / epochs)
        assert len(met) == 66
        assert max(abs(count / epochs - 3 / 11) for count in met.values()) < 4.5 * error
        assert max(abs(count / epochs - 1 / 12) for count in first.values()) < 4.5 * math.sqrt(11 / 144 / epochs)

    def test_near_duplicates_stay_with_their_document(self):
        """Two questions share one block more than their document: the four questions still meet."""
        document = [1, 2]
        paths = [np.array([*document, 3]), np.array([*document, 3]), np.array(document), np.array(document)]
        others = [np.array([10 + 2 * place, 11 + 2 * place]) for place in range(4) for _ in range(4)]
        for seed in range(5):
            assert {0, 1, 2, 3} in map(set, self.batches(paths + others, 4, seed))


class TestBins:
    @pytest.mark.parametrize("system", ["", " ".join(WORDS * 6)])
    def test_the_tree_of_a_bin_fits_a_row(self, system):
        rows = prepared(documents(12, 5, system)).select([*range(55), 57])
        tree = PrefixTree(shared_paths(beginnings_of(rows)))
        sequences = [sequences_of(row) for row in rows]
        sizes = np.array([len(build_tree(own).input_ids) for own in sequences])
        for capacity in (sizes.max(), 2 * sizes.max(), 4000):
            bins = tree.bins(sizes, capacity, np.random.default_rng(0), best_fit_decreasing)
            assert sorted(row for chosen in bins for row in chosen) == list(range(len(rows)))
            tokens = [len(build_tree([s for row in chosen for s in sequences[row]]).input_ids) for chosen in bins]
            assert max(tokens) <= capacity
            if capacity > sizes.max():
                assert len(bins) < len(best_fit_decreasing(sizes, capacity))
            if capacity == 4000:
                met = Counter(document for chosen in bins for document in {row // 5 for row in chosen})
                assert set(met.values()) == {1}, "a document that fits a row is in one row"

    def test_fillers_share_nothing(self):
        tree = PrefixTree(paths_of(3, 3))
        bins = tree.bins(np.array([150] * 6 + [1, 1]), 220, np.random.default_rng(0), best_fit_decreasing)
        assert sorted(row for chosen in bins for row in chosen) == list(range(8))
        assert {len(set(chosen) & {0, 1, 2}) for chosen in bins} == {0, 3}


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [24, 29])
def test_processes_get_whole_batches_in_turn(processes, count):
    paths = paths_of(*[4] * 7, 0)[:count]
    tree, size = PrefixTree(paths), 4
    padded = math.ceil(count / (size * processes)) * size * processes
    sampler = PrefixSampler(tree, padded, size, seed=3, epoch=lambda: 1)
    assert len(sampler) == padded
    shards = [
        list(BatchSamplerShard(BatchSampler(sampler, size, drop_last=False), processes, rank))
        for rank in range(processes)
    ]
    dealt = [batch for turn in zip(*shards, strict=True) for batch in turn]
    alone = tree.batches(size, np.random.default_rng([3, 1]))
    assert [[row for row in batch if row < count] for batch in dealt[: len(alone)]] == alone
    assert sorted(row for batch in dealt for row in batch) == list(range(padded))
    assert list(sampler) != list(PrefixSampler(tree, padded, size, seed=3, epoch=lambda: 2))
    assert list(sampler) != list(PrefixSampler(tree, padded, size, seed=4, epoch=lambda: 1))


def build(tmp_path, groups, seen=None, **overrides):
    """A trainer that appends the tokens of the groups of each micro-batch to `seen`."""
    given = {"train_sampling_strategy": "random", "layout": "auto", "group_by_prefix": True, "max_length": 2048}
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(tmp_path, **given | overrides),
        train_dataset=groups,
        processing_class=tiny.tokenizer(),
    )
    if seen is not None:
        inner = trainer.data_collator.__call__

        def collate(examples):
            seen.append([tuple(row["input_ids"]) for row in examples])
            return inner(examples)

        trainer.data_collator = collate
    return trainer


def test_a_run_computes_each_document_once(tmp_path, caplog):
    """Four documents of four questions, four groups in a micro-batch, one response each: two epochs."""
    caplog.set_level("INFO", logger="mrt_plugin")
    groups, seen = documents(4, 4, responses=1), []
    trainer = build(tmp_path, groups, seen, num_train_epochs=2)
    trainer.train()
    rows = [tuple(row["input_ids"]) for row in trainer.train_dataset]
    places = [[rows.index(row) for row in batch] for batch in seen]
    assert [sorted(row for batch in places[start : start + 4] for row in batch) for start in (0, 4)] == [
        list(range(16))
    ] * 2
    assert all(len({row // 4 for row in batch}) == 1 for batch in places)
    assert places[:4] != places[4:]
    assert trainer.layout == "shared_prefix", "a ratio of random micro-batches would be too small to share"
    plain = build(tmp_path, groups, group_by_prefix=False)
    assert isinstance(plain._get_train_sampler(), RandomSampler)
    (line,) = [record.getMessage() for record in caplog.records if "ordinary shuffle" in record.getMessage()]
    exact = sharing_of(trainer.train_dataset, trainer.args, places[:4]).shared
    assert f"group_by_prefix: {exact:,} tokens a pass" in line
    assert not any("saves little" in record.getMessage() for record in caplog.records)


@pytest.mark.slow
def test_a_run_resumed_within_an_epoch_goes_on_with_its_order(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 5

    groups = documents(4, 3, length=80)
    common = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 5,
    }
    whole, parts, after = [], [], []
    undisturbed = build(tmp_path / "whole", groups, whole, **common)
    undisturbed.train()
    assert undisturbed.state.global_step == 6
    stopped = build(tmp_path / "parts", groups, parts, **common)
    stopped.add_callback(Stop())
    stopped.train()
    resumed = build(tmp_path / "parts", groups, after, **common)
    resumed.train(resume_from_checkpoint=True)
    assert after[-2:] == whole[-2:]
    assert losses(resumed)[-1:] == pytest.approx(losses(undisturbed)[-1:], rel=1e-5)
    with pytest.raises(ValueError, match="group_by_prefix: True then, False now"):
        build(tmp_path / "parts", groups, **common, group_by_prefix=False).train(resume_from_checkpoint=True)


def test_an_order_of_ones_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_sampling_strategy='sequential' sets another"):
        build(tmp_path, make_groups(4, 2), train_sampling_strategy="sequential")


@pytest.mark.parametrize(
    ("layout", "words"),
    [("auto", "group_by_prefix saves little"), ("expanded", "it saves nothing in layout expanded")],
)
def test_a_run_that_saves_nothing_says_so(tmp_path, caplog, layout, words):
    trainer = build(tmp_path, make_groups(4, 3), layout=layout)
    assert words in caplog.text
    assert isinstance(trainer._get_train_sampler(), PrefixSampler), "a layout never changes the steps"
