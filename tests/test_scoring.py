"""Scoring: the cache that is trusted by many processes, reward models, and scorers by name."""

import json
import logging
import multiprocessing
import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny
from helpers.processes import run_python, start_python
from helpers.selecting import reward_dir
from scipy.stats import kendalltau, spearmanr
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
)

from mrt_plugin import load_groups, select
from mrt_plugin.scoring import CacheError, ScoreCache, score_groups, softmax_weights
from mrt_plugin.scoring.agreement import agreement, agreement_line
from mrt_plugin.scoring.cache import cache_directory
from mrt_plugin.scoring.fixed_shapes import fixed_batches, padded_length
from mrt_plugin.scoring.reward_model import RewardModel


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("MRT_CACHE", str(tmp_path / "scores"))


def pool(count: int = 6) -> Dataset:
    return load_groups(
        Dataset.from_list(
            [
                {"prompt": f"Name fruit {n}.", "responses": [f"An apple {j} " * (1 + (n + j) % 9) for j in range(5)]}
                for n in range(count)
            ]
        )
    )


class TestCache:
    @pytest.mark.processes
    def test_what_was_put_is_there_for_another_process(self, tmp_path: Path) -> None:
        ScoreCache(tmp_path).put({b"a": np.array([1.5, -2]), b"b": np.array([3.0])})
        code = f"from mrt_plugin.scoring import ScoreCache; print(ScoreCache({str(tmp_path)!r}).get([b'a', b'x']))"
        assert run_python(["-c", code]).stdout == "{b'a': array([ 1.5, -2. ], dtype=float32)}\n"

    @pytest.mark.parametrize("column", ["value", "checksum", "key"])
    def test_a_damaged_entry_counts_as_absent(self, tmp_path: Path, column: str, caplog: Any) -> None:
        cache = ScoreCache(tmp_path)
        cache.put({b"a": np.ones(3), b"b": np.zeros(3)})
        with sqlite3.connect(cache.path) as connection:
            connection.execute(f"UPDATE entry SET {column} = ? WHERE key = ?", (b"\x07" * 12, b"a"))
        assert set(cache.get([b"a", b"b", b"\x07" * 12])) == {b"b"}
        assert "1 damaged entries are computed again" in caplog.text
        cache.put({b"a": np.ones(3)})
        assert (cache.get([b"a"])[b"a"] == 1).all()

    def test_a_damaged_file_is_set_aside(self, tmp_path: Path, caplog: Any) -> None:
        (tmp_path / "scores.sqlite3").write_bytes(b"this is no database " * 500)
        cache = ScoreCache(tmp_path)
        cache.put({b"a": np.ones(1)})
        assert len(cache) == 1
        assert (tmp_path / "scores.sqlite3.damaged").exists()
        assert "is damaged" in caplog.text

    def test_a_directory_that_cannot_be_used(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CacheError, match=r"file/scores.sqlite3 cannot be used .* MRT_CACHE"):
            ScoreCache(tmp_path / "file")
        with pytest.raises(CacheError, match="score_cache"):
            ScoreCache("/proc/mrt")

    def test_no_space_left(self, tmp_path: Path) -> None:
        cache = ScoreCache(tmp_path)
        cache.put({b"before": np.ones(1)})
        assert cache._connection is not None
        cache._connection.execute("PRAGMA max_page_count = 20")  # what SQLite says of a full disk, it says of this
        with pytest.raises(CacheError, match="full.*Free some space and run the same command again"):
            cache.put({bytes([n]): np.ones(10000) for n in range(9)})
        assert set(cache.get([b"before", bytes([0])])) == {b"before"}

    @pytest.mark.processes
    def test_two_processes_write_at_once(self, tmp_path: Path) -> None:
        code = (
            "import sys, numpy as np; from mrt_plugin.scoring import ScoreCache\n"
            "cache = ScoreCache(sys.argv[1])\n"
            "for n in range(200):\n"
            "    cache.put({f'{sys.argv[2]} {n}'.encode(): np.full(50, n), b'same': np.full(50, 7)})\n"
        )
        writers = [start_python(["-c", code, tmp_path, name]) for name in ("a", "b", "c")]
        assert [writer.wait() for writer in writers] == [0, 0, 0]
        cache = ScoreCache(tmp_path)
        assert len(cache) == 601
        assert (cache.get([b"b 199"])[b"b 199"] == 199).all()

    @pytest.mark.processes
    @pytest.mark.processes
    def test_many_processes_make_it_at_once(self, tmp_path: Path) -> None:
        """Six open a new cache at the same moment, fifteen times."""
        for number in range(15):
            begin, children = time.time() + 0.03, []
            for _ in range(6):
                child = os.fork()
                if child == 0:
                    while time.time() < begin:
                        pass
                    try:
                        os._exit(len(ScoreCache(tmp_path / str(number))))
                    finally:
                        os._exit(1)
                children.append(child)
            assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6

    @pytest.mark.processes
    def test_it_works_in_a_forked_process(self, tmp_path: Path) -> None:
        cache = ScoreCache(tmp_path)
        cache.put({b"a": np.ones(1)})
        child = os.fork()
        if child == 0:
            cache.put({b"child": cache.get([b"a"])[b"a"] + 1})
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert cache.get([b"child"])[b"child"] == 2

    def test_where_it_lies(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert cache_directory() == tmp_path / "scores"
        assert cache_directory("here") == Path("here")
        monkeypatch.delenv("MRT_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
        assert cache_directory() == Path("/xdg/mrt-plugin")


class TestFixedShapes:
    def test_a_length_depends_on_the_text_alone(self) -> None:
        for length in range(1, 3000):
            assert length <= padded_length(length) <= max(16, 1.5 * length)
        assert padded_length(500, longest=512) == 512
        assert padded_length(400, longest=400) == 400

    def test_every_text_is_in_one_batch(self) -> None:
        lengths = [1 + (7 * n) % 300 for n in range(500)]
        batches = list(fixed_batches(lengths, tokens=2048, longest=299))
        assert sorted(index for _, indices, _ in batches for index in indices) == list(range(500))
        for padded, indices, rows in batches:
            assert len(indices) <= rows <= max(1, 2048 // padded)
            assert rows in (1, 4, 8, 16, 32, 64, 128), "without rows that are left over from a kernel's blocks"
            assert {padded_length(lengths[index], 299) for index in indices} == {padded}


class TestRewardModel:
    def test_the_scores_are_the_models(self, tmp_path: Path) -> None:
        name = reward_dir(tmp_path / "model")
        scored = score_groups(pool(), name)
        model, tokenizer = AutoModelForSequenceClassification.from_pretrained(name), tiny.tokenizer()
        for group in scored:
            for response, score in zip(group["responses"], group["scores"], strict=True):
                messages = [
                    {"role": "user", "content": group["prompt"]},
                    {"role": "assistant", "content": response},
                ]
                ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), return_tensors="pt")
                with torch.no_grad():
                    assert model(ids["input_ids"]).logits.item() == pytest.approx(score, abs=1e-5)

    def test_without_a_chat_template_it_reads_a_pair(self, tmp_path: Path) -> None:
        name = reward_dir(tmp_path / "model", chat=False)
        groups = pool(2)
        scored = score_groups(groups, name)
        model = AutoModelForSequenceClassification.from_pretrained(name)
        tokenizer = tiny.tokenizer(chat_template=None)
        for group in scored:
            ids = tokenizer(group["prompt"], group["responses"][3], return_tensors="pt")
            with torch.no_grad():
                assert model(**ids).logits.item() == pytest.approx(group["scores"][3], abs=1e-5)

    @pytest.mark.parametrize("chat", [True, False])
    def test_a_score_does_not_depend_on_the_company(self, tmp_path: Path, chat: bool) -> None:
        name = reward_dir(tmp_path / "model", chat=chat)
        groups = pool(40)
        whole = score_groups(groups, name, score_cache=tmp_path / "one")["scores"][:]
        model = RewardModel(name, ScoreCache(tmp_path / "alone"))
        for index in range(0, 40, 3):
            for place in (4, 1):
                pair = (groups[index]["prompt"], groups[index]["responses"][place])
                assert model.score([pair])[0] == whole[index][place]

    def test_nothing_is_computed_twice(self, tmp_path: Path) -> None:
        name = reward_dir(tmp_path / "model")
        first = score_groups(pool(), name)
        model = RewardModel(name, ScoreCache())
        model.model.forward = None  # it would raise
        group = pool()[0]
        pairs = [(group["prompt"], response) for response in group["responses"]]
        assert model.score(pairs).tolist() == first["scores"][0]

    def test_another_model_of_the_same_name_is_another_model(self, tmp_path: Path) -> None:
        first = score_groups(pool(), reward_dir(tmp_path / "model"))["scores"][:]
        second = score_groups(pool(), reward_dir(tmp_path / "model", seed=1))["scores"][:]
        assert first != second

    def test_a_long_conversation_loses_its_beginning(self, tmp_path: Path, caplog: Any) -> None:
        name = reward_dir(tmp_path / "model")
        groups = load_groups(Dataset.from_list([{"prompt": "Hi", "responses": ["apple " * 6000, "plum"]}]))
        assert np.isfinite(score_groups(groups, name)["scores"][0]).all()
        assert "1 conversations are longer than the 4096 tokens" in caplog.text

    def test_several_labels(self, tmp_path: Path) -> None:
        name = reward_dir(tmp_path / "model", labels=3)
        with pytest.raises(ValueError, match=r"has 3 labels \(LABEL_0, LABEL_1, LABEL_2\).*my_module:score"):
            score_groups(pool(), name)

    def test_a_language_model_is_no_reward_model(self, tiny_model_dir: str) -> None:
        with pytest.raises(ValueError, match="labels|no trained score head"):
            score_groups(pool(), tiny_model_dir)

    def test_no_such_model(self) -> None:
        with pytest.raises(ValueError, match="scorer='nowhere/nothing' could not be loaded as a reward model"):
            score_groups(pool(), "nowhere/nothing")

    def test_it_decides(self, tmp_path: Path, caplog: Any) -> None:
        caplog.set_level(logging.INFO, "mrt_plugin")
        first, second = reward_dir(tmp_path / "first"), reward_dir(tmp_path / "second", seed=5)
        groups = pool()
        scored = score_groups(groups, first)
        chosen = select(groups, "best_k", k=2, scorer=f"{first}, {second}")
        assert chosen.to_list() == select(scored, "best_k", k=2).to_list()
        assert f"{second} agrees with {first}: rank correlation" in caplog.text
        others = select(groups, "best_k", k=2, scorer=second)
        changed = sum(
            len(set(ours) - set(theirs)) for ours, theirs in zip(chosen["responses"], others["responses"], strict=True)
        )
        assert f"best_k would change {changed} of 12 picks" in caplog.text


def sentence_dir(directory: Path) -> str:
    """A tiny seeded sentence-transformers model."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    tokenizer = tiny.tokenizer(directory / "bert", chat_template=None)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=1024, pad_token_id=tokenizer.pad_token_id, **shape)).save_pretrained(
        directory / "bert"
    )
    parts = [modules.Transformer(str(directory / "bert")), modules.Pooling(32)]
    pytest.importorskip("sentence_transformers").SentenceTransformer(modules=parts, device="cpu").save(
        str(directory / "model")
    )
    return str(directory / "model")


@pytest.mark.parametrize("kind", ["scores", "vectors"])
class TestWhateverHappens:
    """The cache of a reward model's scores, and that of an embedder's vectors."""

    SIZE = 120 * 6

    @pytest.fixture
    def job(self, kind: str, tmp_path: Path) -> Callable[[Path, Any], None]:
        """Score or embed 720 texts with the cache in a folder, and leave there what came of it, and how many texts the
        model was given. With a pause after every batch, a kill comes in between."""
        rows = [
            {"prompt": f"Count {n}.", "responses": [f"{n} and {j} " * (1 + (n + 5 * j) % 30) for j in range(6)]}
            for n in range(120)
        ]
        groups = load_groups(Dataset.from_list(rows))
        name = reward_dir(tmp_path / "reward", chat=False) if kind == "scores" else sentence_dir(tmp_path)

        def run(folder: Path, pause: float = 0.0) -> None:
            read: set[tuple[int, ...]] = set()

            def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(module, torch.nn.Embedding) and module.num_embeddings == 1024:
                    read.update(map(tuple, inputs[0].tolist()))
                    time.sleep(pause)

            hook = torch.nn.modules.module.register_module_forward_hook(note)
            try:
                if kind == "scores":
                    found: Any = score_groups(groups, name, score_cache=folder)["scores"][:]
                else:
                    found = select(groups, "diverse_k", k=2, embedder=name, score_cache=folder)["responses"][:]
            finally:
                hook.remove()
            (folder / "found.json").write_text(json.dumps([found, len(read)]))

        return run

    def start(self, job: Callable[..., None], *arguments: Any) -> Any:
        process = multiprocessing.get_context("fork").Process(target=job, args=arguments)
        process.start()
        return process

    @pytest.mark.processes
    def test_killed_at_random_points(self, job: Callable[..., None], tmp_path: Path) -> None:
        """kill -9, and the same command again: it computes what is missing, and comes to the same result."""
        job(tmp_path / "calm")
        expected, read = json.loads((tmp_path / "calm/found.json").read_text())
        assert read == self.SIZE
        drawn, folder = random.Random(time.time_ns()), tmp_path / "killed"
        finished = [0]
        for _ in range(3):
            process = self.start(job, folder, 0.05)
            while process.is_alive() and (not folder.exists() or len(ScoreCache(folder)) == finished[-1]):
                time.sleep(0.01)
            time.sleep(drawn.random() / 4)
            process.kill()
            process.join()
            finished.append(len(ScoreCache(folder)))
        assert 0 < finished[1] < self.SIZE
        job(folder)
        assert json.loads((folder / "found.json").read_text()) == [expected, self.SIZE - finished[-1]]
        with sqlite3.connect(ScoreCache(folder).path) as connection:  # nothing was written a second time
            assert connection.execute("SELECT count(*), max(rowid) FROM entry").fetchone() == (self.SIZE,) * 2

    @pytest.mark.processes
    def test_two_processes_share_it(self, job: Callable[..., None], tmp_path: Path) -> None:
        processes = [self.start(job, tmp_path / "shared", 0.01) for _ in range(2)]
        for process in processes:
            process.join()
            assert process.exitcode == 0
        job(tmp_path / "alone")
        shared, alone = (json.loads((tmp_path / name / "found.json").read_text()) for name in ("shared", "alone"))
        assert shared[0] == alone[0]
        assert len(ScoreCache(tmp_path / "shared")) == self.SIZE

    def test_a_corrupt_entry_is_computed_again(self, job: Callable[..., None], tmp_path: Path) -> None:
        job(tmp_path / "calm")
        first, _ = json.loads((tmp_path / "calm/found.json").read_text())
        with sqlite3.connect(ScoreCache(tmp_path / "calm").path) as connection:
            connection.execute("UPDATE entry SET value = zeroblob(length(value)) WHERE rowid % 3 = 0")
        job(tmp_path / "calm")
        assert json.loads((tmp_path / "calm/found.json").read_text()) == [first, self.SIZE // 3]


class TestFunctions:
    def test_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(
            "def shortest(prompt, responses):\n    return [-len(r) for r in responses]\n"
        )
        scored = score_groups(pool(), f"{tmp_path}/mine.py:shortest")
        assert scored["scores"][1] == [-float(len(response)) for response in pool()["responses"][1]]

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'nowhere:score': No module named 'nowhere'"):
            score_groups(pool(), "nowhere:score")
        with pytest.raises(ValueError, match=r"gave \[1.0\] for the 5 responses of group"):
            score_groups(pool(), lambda prompt, responses: [1.0])
        with pytest.raises(ValueError, match="one finite number for each"):
            score_groups(pool(), lambda prompt, responses: [float("nan")] * 5)
        with pytest.raises(ValueError, match="scorer is empty"):
            score_groups(pool(), " , ")


def test_agreement() -> None:
    same = agreement_line("a", [[1, 2, 3], [1, 1]], "b", [[5, 6, 9], [0, 1]])
    assert same == (
        "b agrees with a: rank correlation 1.00 (Spearman) and 1.00 (Kendall) inside a group (mean of 1), the same "
        "order in 100% of 3 pairs, the same best response in 100%."
    )
    assert "rank correlation -1.00 (Spearman)" in agreement_line("a", [[1, 2, 3]], "b", [[3, 2, 1]])
    assert "no group" in agreement_line("a", [[1]], "b", [[2]])


def test_agreement_is_that_of_scipy_with_ties() -> None:
    random = np.random.default_rng(0)
    groups = [(random.integers(0, 4, size=7), random.integers(0, 4, size=7)) for _ in range(30)]
    found = agreement([x.tolist() for x, _ in groups], [y.tolist() for _, y in groups])
    assert found.groups == 30
    assert found.spearman == pytest.approx(np.mean([spearmanr(x, y).statistic for x, y in groups]))
    assert found.kendall == pytest.approx(np.mean([kendalltau(x, y).statistic for x, y in groups]))
    pairs = [(x[i] - x[j], y[i] - y[j]) for x, y in groups for i in range(7) for j in range(i)]
    apart = [one * other > 0 for one, other in pairs if one and other]
    assert found.pairs == len(apart)
    assert found.accuracy == pytest.approx(np.mean(apart))


def test_a_scorer_is_compared_with_the_column_that_it_replaces(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "mrt_plugin")
    groups = load_groups(Dataset.from_list([{"prompt": "Hi", "responses": ["a", "bb", "ccc"], "scores": [3, 1, 2]}]))
    select(groups, "best_k", k=1, scorer=lambda prompt, responses: [len(text) for text in responses])
    assert "agrees with the column `scores`: rank correlation -0.50 (Spearman)" in caplog.text


class TestWeights:
    def test_softmax(self) -> None:
        assert softmax_weights([2.0, 2.0, 2.0], 0.1) == pytest.approx([1, 1, 1])
        assert softmax_weights([0.0, 1e308, -1e308], 1.0) == [0, 3, 0]
        weights = softmax_weights([0.3, 0.1, 0.7], 0.5)
        assert sum(weights) == pytest.approx(3)
        assert weights[2] / weights[1] == pytest.approx(np.exp(0.6 / 0.5))
        with pytest.raises(ValueError, match="above 0"):
            softmax_weights([1.0], 0)

    def test_select_weighs_what_it_kept(self) -> None:
        groups = score_groups(pool(), lambda prompt, responses: [len(response) / 10 for response in responses])
        chosen = select(groups, "best_k", k=3, weights="softmax", weight_temperature=2.0)
        for group in chosen:
            assert group["weights"] == pytest.approx(softmax_weights(group["scores"], 2.0))
        with pytest.raises(ValueError, match="needs scores"):
            select(pool(), "random_k", k=2, weights="softmax")
