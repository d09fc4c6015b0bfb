"""Selection: the selectors against slow, obvious definitions, and what must never change a pick."""

import hashlib
import inspect
import itertools
import json
import logging
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import mrt_plugin.selection
from mrt_plugin import load_groups, select
from mrt_plugin.options import SelectionOptions, names_of
from mrt_plugin.selection import SELECTORS, get_selector, run_selection, select_indices
from mrt_plugin.selection.facility_location import maximise, similarities
from mrt_plugin.selection.pool import Pool

CHOOSING = [name for name in SELECTORS if name != "all"]
DIVERSE = ["diverse_k", "diverse_best_k", "filter_then_spread"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def vectors_of(texts: list[str]) -> np.ndarray:
    """An embedder without structure: 5 numbers drawn from the text's hash."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") for text in texts]
    return np.stack([np.random.default_rng(seed).normal(size=5) for seed in seeds])


def make_groups(count: int = 40, seed: int = 0, largest: int = 9) -> Dataset:
    """Pools of mixed sizes with tied scores, repeated texts and weights, one prompt each."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        size = draw.randint(1, largest)
        rows.append(
            {
                "prompt": f"prompt {number}",
                "responses": [f"answer {draw.randint(0, 2 * size)} to {number}" for _ in range(size)],
                "scores": [draw.choice([0.0, 0.25, 0.5, draw.random()]) for _ in range(size)],
                "weights": [draw.choice([0.5, 1.0, 2.0]) for _ in range(size)],
            }
        )
    return load_groups(Dataset.from_list(rows))


def spelled(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def tie_hash(seed: int, name: str, response: Any, repeat: int) -> int:
    state = hashlib.blake2b(digest_size=8)
    for part in (b"select", str(seed).encode(), name.encode(), spelled(response), str(repeat).encode()):
        state.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(state.digest(), "little")


def definition(
    name: str, group: dict[str, Any], k: int, alpha: float, similarity: str, seed: int
) -> tuple[list[int], list[float]]:
    """The design's definition of every selector, spelled out one number at a time: picks in order, and gains."""
    responses, scores = group["responses"], group["scores"]
    size = len(responses)
    if size <= k:
        return list(range(size)), []
    hashes: dict[int, int] = {}
    seen: Counter[str] = Counter()
    for index in sorted(range(size), key=lambda index: -scores[index]):
        hashes[index] = tie_hash(seed, group["id"], responses[index], seen[responses[index]])
        seen[responses[index]] += 1
    if name == "random_k":
        return sorted(range(size), key=hashes.__getitem__)[:k], []
    if name == "best_k":
        return sorted(range(size), key=lambda index: (-scores[index], hashes[index]))[:k], []

    vectors = vectors_of(responses)

    def cosine(i: int, j: int) -> float:
        if responses[i] == responses[j]:
            return 1.0
        dot = math.fsum(float(a) * float(b) for a, b in zip(vectors[i], vectors[j], strict=True))
        return round(dot / math.hypot(*vectors[i]) / math.hypot(*vectors[j]), 6)

    cosines = [[cosine(i, j) for j in range(size)] for i in range(size)]

    def first_of_best(values: dict[int, float]) -> int:
        best = max(values.values())
        tied = [index for index, value in values.items() if value >= best - 1e-9]
        return min(tied, key=lambda index: (-scores[index], hashes[index]))

    if name == "filter_then_spread":
        threshold = np.quantile(scores, 0.5)
        good = [index for index in range(size) if scores[index] >= threshold]
        if len(good) < k:
            good = sorted(range(size), key=lambda index: (-scores[index], hashes[index]))[:k]
        picked = [first_of_best({index: scores[index] for index in good})]
        while len(picked) < k:
            distances = {i: min(1 - cosines[i][j] for j in picked) for i in good if i not in picked}
            picked.append(first_of_best(distances))
        return picked, []

    least = min(min(row) for row in cosines)

    def s(i: int, j: int) -> float:
        if similarity == "paper":
            return (cosines[i][j] + 1) / 2
        return 1.0 if least == 1 else (cosines[i][j] - least) / (1 - least)

    low, high = min(scores), max(scores)
    w = [1.0] * size
    if name == "diverse_best_k":
        w = [min(max((x - low) / (high - low) if high > low else 1.0, 1e-4), 1.0) ** alpha for x in scores]
    b = [max(x, 1e-4) for x in w]

    def value(chosen: list[int]) -> float:
        return math.fsum(b[i] * max((w[j] * s(i, j) for j in chosen), default=0.0) for i in range(size))

    picked, gains = [], []
    for _ in range(k):
        options = {j: value([*picked, j]) - value(picked) for j in range(size) if j not in picked}
        best = first_of_best(options)
        gains.append(options[best])
        picked.append(best)
    return picked, gains


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize("similarity", ["paper", "rescaled"])
@pytest.mark.parametrize(("k", "alpha"), [(1, 1.0), (3, 0.75), (5, 0.0), (2, 4.0)])
def test_picks_are_those_of_the_definition(name: str, similarity: str, k: int, alpha: float) -> None:
    groups = make_groups()
    chosen = run_selection(groups, SelectionOptions(name, k, None, alpha, similarity, vectors_of), seed=7)
    picks, report = chosen.picks, chosen.report
    expected = [definition(name, group, k, alpha, similarity, 7) for group in groups]
    assert picks == [sorted(picked) for picked, _ in expected]
    later = [gain for _, gains in expected for gain in gains[1:]]
    assert report.later_picks == len(later)
    assert report.zero_gain == sum(gain < 1e-9 for gain in later)
    assert report.kept == sum(map(len, picks))
    assert report.whole == sum(len(group["responses"]) <= k for group in groups)
    assert report.short == sum(len(group["responses"]) < k for group in groups)


def test_select_slices_every_column_alike() -> None:
    groups = make_groups()
    picks = select_indices(groups, "diverse_best_k", k=3, embedder=vectors_of)
    chosen = select(groups, "diverse_best_k", k=3, embedder=vectors_of)
    assert chosen.features == groups.features
    for before, after, picked in zip(groups, chosen, picks, strict=True):
        assert (after["id"], after["prompt"]) == (before["id"], before["prompt"])
        for name in ("responses", "scores", "weights"):
            assert after[name] == [before[name][index] for index in picked]
    assert select(chosen, "all").to_list() == chosen.to_list()


def test_select_keeps_messages_as_they_are() -> None:
    call = {"function": {"name": "f", "arguments": {"x": None, "y": [1, {"z": "ü"}]}}}
    answers = [
        [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "3"},
         {"role": "assistant", "content": f"{number}", "reasoning_content": "hm"}]
        for number in range(6)
    ]  # fmt: skip
    row = {"prompt": [{"role": "user", "content": "?"}], "responses": answers}
    groups = load_groups(
        datasets.IterableDataset.from_generator(lambda: iter([row, {**row, "responses": answers[1:]}]))
    )
    for name in ("random_k", "diverse_k"):
        picks = select_indices(groups, name, k=2)
        chosen = select(groups, name, k=2)
        assert chosen["responses"][:] == [[answers[i] for i in picks[0]], [answers[i + 1] for i in picks[1]]]
        assert load_groups(chosen).to_list() == chosen.to_list()


class TestWhatNeverChangesAPick:
    """Picks are compared as texts with scores, by group."""

    @staticmethod
    def picked(groups: Dataset, name: str, **options: Any) -> dict[str, list[Any]]:
        chosen = select(groups, name, k=3, seed=5, **options)
        return {row["id"]: sorted(zip(row["responses"], row["scores"], row["weights"], strict=True)) for row in chosen}

    @pytest.mark.parametrize("name", SELECTORS)
    @pytest.mark.parametrize("num_proc", [2, 3])
    def test_processes(self, name: str, num_proc: int) -> None:
        groups = make_groups(600 if name == "random_k" else 24)
        assert select(groups, name, k=3, num_proc=num_proc).to_list() == select(groups, name, k=3).to_list()

    @pytest.mark.parametrize("name", SELECTORS)
    def test_row_order_and_company(self, name: str) -> None:
        groups = make_groups(24)
        whole = self.picked(groups, name)
        assert self.picked(groups.shuffle(seed=1), name) == whole
        alone = [self.picked(groups.select([index]), name) for index in range(len(groups))]
        assert {key: value for part in alone for key, value in part.items()} == whole

    @pytest.mark.parametrize("name", SELECTORS)
    def test_order_of_the_responses(self, name: str) -> None:
        """Repeated texts get equal weights here: nothing else tells them apart once text and score are the same."""
        rows = make_groups(24).to_list()
        draw = random.Random(3)
        for row in rows:
            row["weights"] = [1.0] * len(row["responses"])
        mixed = []
        for row in rows:
            order = draw.sample(range(len(row["responses"])), len(row["responses"]))
            mixed.append({**row, **{key: [row[key][i] for i in order] for key in ("responses", "scores", "weights")}})
        assert [row["responses"] for row in mixed] != [row["responses"] for row in rows]
        one = self.picked(load_groups(Dataset.from_list(rows)), name, embedder=vectors_of)
        two = self.picked(load_groups(Dataset.from_list(mixed)), name, embedder=vectors_of)
        assert one == two

    def test_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        groups = make_groups(50, largest=20)
        expected = select_indices(groups, "diverse_best_k", k=3)
        monkeypatch.setattr("mrt_plugin.selection.run.BATCH", 7)
        monkeypatch.setattr("mrt_plugin.selection.decide.CELLS", 300)
        monkeypatch.setattr("mrt_plugin.scoring.cosine.CELLS", 50)
        monkeypatch.setattr("mrt_plugin.selection.facility_location.BATCH_CELLS", 1)
        assert select_indices(groups, "diverse_best_k", k=3) == expected

    @pytest.mark.parametrize("name", DIVERSE)
    def test_round_off(self, name: str) -> None:
        """Vectors that differ in the 9th digit, as those of a model do with the rest of its batch, are equals."""
        rows = [{"prompt": f"p {n}", "responses": list("abcdefgh"), "scores": [0.5] * 8} for n in range(30)]
        groups = load_groups(Dataset.from_list(rows))
        noise = np.random.default_rng(0)

        def shaky(texts: list[str]) -> np.ndarray:
            exact = np.array([[1.0, 0.0] if text < "e" else [0.0, 1.0] for text in texts])
            return exact + noise.normal(scale=1e-9, size=exact.shape)

        first = select_indices(groups, name, k=4, embedder=shaky)
        assert all(select_indices(groups, name, k=4, embedder=shaky) == first for _ in range(5))


class TestRandomness:
    def test_random_k_is_uniform(self) -> None:
        """Each of the 10 pairs of 5 is as likely as any other: chi-squared with 9 degrees, 99.9 % below 27.9."""
        rows = [{"prompt": f"p {number}", "responses": list("abcde")} for number in range(3000)]
        picks = select_indices(load_groups(Dataset.from_list(rows)), "random_k", k=2)
        counts = Counter(map(tuple, picks))
        assert len(counts) == 10
        assert sum((count - 300) ** 2 / 300 for count in counts.values()) < 27.9

    def test_repeats_are_drawn_as_often_as_the_rest(self) -> None:
        rows = [{"prompt": f"p {number}", "responses": ["same", "same", "same", "other"]} for number in range(2000)]
        picks = select_indices(load_groups(Dataset.from_list(rows)), "random_k", k=1)
        counts = Counter(picked[0] for picked in picks)
        assert all(420 < counts[index] < 580 for index in range(4))  # 500 expected, sd 19

    @pytest.mark.parametrize("name", ["random_k", "best_k", "diverse_best_k"])
    def test_seeds_differ_where_chance_decides(self, name: str) -> None:
        rows = [{"prompt": f"p {n}", "responses": list("abcdef"), "scores": [1] * 6} for n in range(30)]
        groups = load_groups(Dataset.from_list(rows))
        options: dict[str, Any] = {"k": 2, "embedder": lambda texts: np.ones((len(texts), 2))}
        first = select_indices(groups, name, seed=0, **options)
        assert first == select_indices(groups, name, seed=0, **options)
        assert first != select_indices(groups, name, seed=1, **options)
        assert len(set(map(tuple, first))) > 5  # groups draw independently


class TestPools:
    """Pools that break careless code."""

    @staticmethod
    def pick(responses: list[str], scores: list[float], name: str, **options: Any) -> list[int]:
        row = {"prompt": "p", "responses": responses, "scores": scores}
        return select_indices(load_groups(Dataset.from_list([row])), name, **options)[0]

    @pytest.mark.parametrize("name", CHOOSING)
    @pytest.mark.parametrize("k", [1, 2, 4, 7])
    def test_sizes(self, name: str, k: int) -> None:
        for size in (1, 4, 500):
            responses = [f"response number {index} {index * index}" for index in range(size)]
            picked = self.pick(responses, [index / size for index in range(size)], name, k=k)
            assert len(set(picked)) == min(k, size)
            assert picked == sorted(picked)

    @pytest.mark.parametrize("name", CHOOSING)
    def test_identical_responses(self, name: str) -> None:
        assert len(set(self.pick(["same"] * 6, [1, 2, 3, 3, 2, 1], name, k=3))) == 3
        if name != "random_k" and name != "diverse_k":
            assert {2, 3} < set(self.pick(["same"] * 6, [1, 2, 3, 3, 2, 1], name, k=3))

    def test_what_covers_nothing_new_goes_by_score(self) -> None:
        """One dominating response covers all; the design wants the better score next, not the pool's order."""
        scores = [0.1, 0.0, 0.9, 1.0, 0.3, 0.2]
        picked = self.pick(["apple pie"] * 4 + ["apple pies"] * 2, scores, "diverse_best_k", k=3, alpha=3.0)
        assert picked == [2, 3, 4]

    @pytest.mark.parametrize("name", DIVERSE)
    def test_any_script_and_length(self, name: str) -> None:
        responses = ["四", "答えは四です。", "الجواب أربعة", "Ответ: четыре", "😀", "?", "x" * 100_000, "४"]
        assert len(self.pick(responses, [0.5] * 8, name, k=3)) == 3

    @pytest.mark.parametrize("name", ["diverse_best_k", "filter_then_spread"])
    @pytest.mark.parametrize("scores", [[1e308, -1e308, 0, 5, 3], [-5, -4, -3, -2, -1], [1e-300, 0, 0, 0, 0]])
    def test_any_scale_of_scores(self, name: str, scores: list[float]) -> None:
        picked = self.pick(["one", "two two", "three 3", "44444", "fünf"], scores, name, k=2)
        assert int(np.argmax(scores)) in picked or name == "diverse_best_k"
        assert len(picked) == 2

    def test_alpha_0_ignores_scores(self) -> None:
        groups = make_groups(20)
        assert select_indices(groups, "diverse_best_k", k=3, alpha=0) == select_indices(groups, "diverse_k", k=3)

    def test_weight_0_is_never_kept(self, caplog: pytest.LogCaptureFixture) -> None:
        row = {"prompt": "p", "responses": list("abcde"), "scores": [1, 2, 3, 4, 5], "weights": [1, 1, 0, 1, 0]}
        groups = load_groups(Dataset.from_list([row]))
        for name in CHOOSING:
            assert set(select_indices(groups, name, k=2)[0]) < {0, 1, 3}
        assert select_indices(groups, "all") == [[0, 1, 3]]
        assert select_indices(groups, "best_k", k=2) == [[1, 3]]
        assert select(groups, "best_k", k=4)["responses"][:] == [["a", "b", "d"]]
        assert "responses of weight 0, never kept: 2" in caplog.text


class TestReports:
    def test_what_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        rows = [
            {"prompt": str(n), "responses": [f"{n} {i}" for i in range(n)], "scores": [0.5] * n} for n in (2, 3, 5)
        ]
        groups = load_groups(Dataset.from_list(rows))
        with caplog.at_level(logging.INFO, logger="mrt_plugin"):
            select(groups, "random_k", k=3)
        assert "random_k: kept 8 of 10 responses of 3 groups; 2 pools of at most k=3 kept whole." in caplog.text
        assert "pools smaller than k=3, kept whole: 1." in caplog.text

    def test_zero_gain_picks_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        rows = [
            {"prompt": str(n), "responses": ["a b", "a b", "a b", "a c"], "scores": [9, 8, 7, 6]} for n in range(4)
        ]
        groups = load_groups(Dataset.from_list(rows))
        report = run_selection(groups, SelectionOptions("diverse_best_k", k=3, similarity="paper", alpha=1.0)).report
        assert (report.later_picks, report.zero_gain_share) == (8, 1.0)
        with caplog.at_level(logging.INFO, logger="mrt_plugin"):
            select(groups, "diverse_best_k", k=3, similarity="paper", alpha=1.0)
        assert "100.0% of 8 picks after a group's first gained nothing" in caplog.text
        assert "similarity='rescaled'" in caplog.text


class TestScorers:
    def test_a_scorer_gives_the_scores(self) -> None:
        groups = make_groups(12)
        chosen = select(groups, "best_k", k=2, scorer=lambda prompt, responses: [len(text) for text in responses])
        for before, after in zip(groups, chosen, strict=True):
            longest = sorted(map(len, before["responses"]), reverse=True)[:2]
            assert sorted(after["scores"], reverse=True) == longest
            assert [len(text) for text in after["responses"]] == after["scores"]

    def test_groups_without_scores_can_be_scored(self) -> None:
        groups = make_groups(6).remove_columns("scores")
        picks = select_indices(groups, "best_k", k=1, scorer=lambda prompt, responses: range(len(responses)))
        assert picks == [[len(responses) - 1] for responses in groups["responses"]]

    @pytest.mark.parametrize("wrong", [[1.0], float("nan"), None])
    def test_wrong_scores_are_refused(self, wrong: Any) -> None:
        groups = load_groups(Dataset.from_list([{"prompt": "p", "responses": ["a", "b"]}]))
        scores = wrong if isinstance(wrong, list) else [1.0, wrong]
        with pytest.raises(ValueError, match=f"scorer gave .* group {groups[0]['id']}"):
            select(groups, "best_k", k=1, scorer=lambda prompt, responses: scores)


class TestRefusals:
    def test_unknown_selector_lists_the_known(self) -> None:
        with pytest.raises(ValueError, match=f"'best' is unknown: choose one of {', '.join(SELECTORS)}"):
            select(make_groups(2), "best", k=1)

    @pytest.mark.parametrize("name", ["best_k", "diverse_best_k", "filter_then_spread"])
    def test_scores_are_needed(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"selector='{name}' needs scores"):
            select(make_groups(2).remove_columns("scores"), name, k=1)

    @pytest.mark.parametrize(
        "options",
        [{"k": 0}, {"k": -1}, {"k": 1.5}, {"k": True}, {"k": None}, {"alpha": -1}, {"alpha": float("nan")},
         {"alpha": float("inf")}, {"similarity": "cosine"}, {"seed": "x"}],
    )  # fmt: skip
    def test_options_out_of_bounds(self, options: dict[str, Any]) -> None:
        name = next(iter(options))
        with pytest.raises(ValueError, match=name):
            select(make_groups(2), "diverse_best_k", **{"k": 2, **options})

    def test_an_unknown_option_is_named_with_the_nearest(self) -> None:
        with pytest.raises(TypeError, match="alhpa is not an option of a selection: did you mean alpha?"):
            select(make_groups(2), "diverse_best_k", k=2, alhpa=1.0)
        with pytest.raises(TypeError, match="frobnicate is not .* the options are selector, k, n, alpha"):
            select_indices(make_groups(2), "diverse_best_k", k=2, frobnicate=1.0)

    def test_rows_that_are_no_groups(self) -> None:
        with pytest.raises(ValueError, match="no column id or prompt: read them with `load_groups`"):
            select(Dataset.from_dict({"responses": [["a"]]}), "random_k", k=1)

    def test_bad_embeddings(self) -> None:
        groups = load_groups(Dataset.from_list([{"prompt": "p", "responses": ["a", "b", "c"]}]))
        with pytest.raises(ValueError, match=r"shape \(2, 4\) for 3 texts"):
            select(groups, "diverse_k", k=1, embedder=lambda texts: np.ones((2, 4)))
        with pytest.raises(ValueError, match="not finite, for the text 'b'"):
            select(groups, "diverse_k", k=1, embedder=lambda texts: [[1.0], [float("nan")], [1.0]])


def test_the_signature_is_made_of_the_options() -> None:
    parameters = inspect.signature(select).parameters
    assert list(parameters)[:2] == ["groups", "selector"]
    assert set(parameters) == {"groups", "seed", "num_proc", "engine", *names_of(SelectionOptions)}
    assert parameters["k"].default is None
    assert parameters["alpha"].default == SelectionOptions().alpha


def test_a_new_selector_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first_k.py").write_text("def first_k(pool, k):\n    return range(k)\n")
    monkeypatch.setattr(mrt_plugin.selection, "__path__", [*mrt_plugin.selection.__path__, str(tmp_path)])
    monkeypatch.setitem(SELECTORS, "first_k", "mrt_plugin.selection.first_k:first_k")
    groups = make_groups(8)
    assert select_indices(groups, "first_k", k=2) == select_indices(groups, "best_k", k=2)


class TestFromOutside:
    """Selectors by `file.py:name`."""

    @staticmethod
    def write(folder: Path, body: str) -> str:
        (folder / "mine.py").write_text("import numpy as np\n" + body)
        return f"{folder / 'mine.py'}:choose"

    @pytest.mark.parametrize("num_proc", [None, 2])
    def test_shortest_needs_no_scores_and_no_embedder(self, tmp_path: Path, num_proc: int | None) -> None:
        name = self.write(tmp_path, "def choose(pool, k):\n    return np.argsort(pool.lengths, kind='stable')[:k]\n")
        groups = load_groups(
            Dataset.from_list([{"prompt": f"{n}", "responses": ["a b c", "a", f"{n} b"]} for n in range(9)])
        )
        assert select_indices(groups, name, k=2, num_proc=num_proc) == [[1, 2]] * 9

    def test_what_a_pool_offers(self, tmp_path: Path) -> None:
        body = """
def choose(pool, k):
    assert len(pool.texts) == len(pool.responses) == len(pool.lengths) == len(pool.keys) == pool.size
    assert pool.vectors.shape == (pool.size, 5) and pool.cosines.shape == (pool.size, pool.size)
    assert np.allclose(pool.cosines, pool.vectors @ pool.vectors.T, atol=1e-6)
    assert (np.diff(pool.scores) <= 0).all() and pool.weights.min() > 0
    assert {"id", "prompt", "responses", "source", "k"} <= set(pool.metadata) | {"k"}
    assert pool.metadata["source"] == "web" and pool.metadata["prompt"].startswith("prompt")
    return np.argsort(np.array(pool.metadata["cost"])[pool.order], kind="stable")[:k]
"""
        groups = make_groups(12)
        cost = [list(range(len(responses), 0, -1)) for responses in groups["responses"]]
        groups = groups.add_column("source", ["web"] * 12).add_column("cost", cost)  # type: ignore[call-arg]
        groups = groups.add_column("k", [1] * 12)  # type: ignore[call-arg]
        for allocation in ("fixed", "adaptive"):
            picks = select_indices(groups, self.write(tmp_path, body), k=2, embedder=vectors_of, allocation=allocation)
            sizes = [len(responses) for responses in groups["responses"]]
            for picked, size in zip(picks, sizes, strict=True):
                assert picked == list(range(size - len(picked), size))

    def test_a_selector_object(self, tmp_path: Path) -> None:
        body = (
            "from mrt_plugin.selection.pool import Picks, Selector\n"
            "def last(pools, options):\n"
            "    return [Picks(list(range(pool.size - options.k, pool.size))) for pool in pools]\n"
            "choose = Selector(last, needs_scores=True)\n"
        )
        name = self.write(tmp_path, body)
        groups = make_groups(10)
        worst = select_indices(groups, name, k=1, num_proc=2)
        for group, (picked,) in zip(groups, worst, strict=True):
            assert group["scores"][picked] == min(group["scores"])
        with pytest.raises(ValueError, match="needs scores"):
            select(groups.remove_columns("scores"), name, k=1)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("def choose(pool, k):\n    return [0] * k\n", "must give 2 different positions from 0 to"),
            ("def choose(pool, k):\n    return [0, -1]\n", "must give 2 different positions from 0 to"),
            ("def choose(pool, k):\n    return [0]\n", "must give 2 different positions from 0 to"),
            ("def choose(pool, k):\n    return pool.scores[:k]\n", "needs scores, and the groups have none"),
            ("choose = 3\n", "neither a function nor a Selector"),
            ("def chose(pool, k):\n    return [0]\n", "has no function choose"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, body: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            select(make_groups(9).remove_columns("scores"), self.write(tmp_path, body), k=2)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_loads(name: str) -> None:
    assert get_selector(name).keeps_all == (name == "all")


def with_cosines(cosines: np.ndarray) -> Pool:
    pool = Pool({}, list(range(len(cosines))))
    pool.cosines = cosines
    return pool


pools = st.integers(2, 7).flatmap(
    lambda size: st.tuples(
        st.lists(
            st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=3, max_size=3),
            min_size=size,
            max_size=size,
        ),
        st.lists(st.floats(0, 1), min_size=size, max_size=size),
        st.integers(1, size - 1),
        st.sampled_from(["paper", "rescaled"]),
    )
)


class TestFacilityLocation:
    @staticmethod
    def value(chosen: tuple[int, ...], weights: np.ndarray, s: np.ndarray) -> float:
        if not chosen:
            return 0.0
        picked = list(chosen)
        return float((np.maximum(weights, 1e-4) * (weights[picked] * s[:, picked]).max(axis=1)).sum())

    @settings(deadline=None)
    @given(pools)
    def test_greedy_is_near_the_optimum_and_gains_fall(self, drawn: tuple[Any, Any, int, Any]) -> None:
        vectors, weights, k, similarity = drawn
        w = np.asarray(weights)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = np.asarray(vectors) / np.where(lengths > 0, lengths, 1)
        cosines = np.round(unit @ unit.T, 6)
        np.fill_diagonal(cosines, 1.0)
        (choice,) = maximise([with_cosines(cosines)], [w], SelectionOptions(k=k, similarity=similarity))
        s = similarities(cosines, similarity)
        assert s.min() >= 0
        assert s.max() == 1
        assert choice.gains is not None
        assert len(set(choice.positions)) == len(choice.gains) == k
        assert all(later <= earlier for earlier, later in itertools.pairwise(choice.gains))
        assert min(choice.gains) >= 0
        reached = self.value(tuple(choice.positions), w, s)
        assert reached == pytest.approx(sum(choice.gains), abs=1e-9)
        best = max(self.value(chosen, w, s) for chosen in itertools.combinations(range(len(w)), k))
        assert reached >= (1 - 1 / math.e) * best - 1e-9

    @settings(deadline=None)
    @given(st.lists(pools, min_size=1, max_size=8))
    def test_a_pool_is_chosen_alike_alone_and_in_company(self, drawn: list[tuple[Any, Any, int, Any]]) -> None:
        made, weights = [], []
        for vectors, scores, _, _ in drawn:
            unit = np.asarray(vectors) + 0.1
            unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
            made.append(with_cosines(np.round(unit @ unit.T, 6)))
            weights.append(np.asarray(scores))
        setting = SelectionOptions(k=1 if min(map(len, weights)) == 2 else 2, similarity="paper")
        together = maximise(made, weights, setting)
        assert together == [maximise([pool], [w], setting)[0] for pool, w in zip(made, weights, strict=True)]

    def test_rescaled_spans_the_pool(self) -> None:
        cosines = np.array([[1.0, 0.9, 0.8], [0.9, 1.0, 0.85], [0.8, 0.85, 1.0]])
        assert similarities(cosines, "rescaled").min() == 0
        assert similarities(cosines, "rescaled")[0, 1] == pytest.approx(0.5)
        assert similarities(cosines, "paper")[0, 2] == pytest.approx(0.9)
        assert (similarities(np.ones((2, 2)), "rescaled") == 1).all()


def clustered(count: int = 60, seed: int = 0) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Pools of four clusters of four responses, and their vectors; most scores are low and a few are high."""
    draw = np.random.default_rng(seed)
    rows, vectors = [], {}
    for number in range(count):
        responses, scores = [], []
        for cluster, centre in enumerate(draw.normal(size=(4, 16))):
            for member in range(4):
                responses.append(f"prompt {number}, cluster {cluster}, response {member}")
                vectors[responses[-1]] = centre + 0.2 * draw.normal(size=16)
                scores.append(draw.random() ** 4)
        rows.append({"prompt": f"prompt {number}", "responses": responses, "scores": scores})
    return rows, vectors


def test_diverse_best_k_is_diverse_at_its_defaults() -> None:
    """The paper's objective picks as best_k does: a response of another cluster adds nothing to a better one."""
    rows, vectors = clustered()
    groups = load_groups(Dataset.from_list(rows))
    best = select_indices(groups, "best_k", k=4)

    def as_best_k(**options: Any) -> float:
        picks = select_indices(
            groups,
            "diverse_best_k",
            k=4,
            embedder=lambda texts: np.stack([vectors[text] for text in texts]),
            **options,
        )
        return sum(ours == theirs for ours, theirs in zip(picks, best, strict=True)) / len(picks)

    assert as_best_k() < 0.3
    assert as_best_k(similarity="paper", alpha=1.0) > 0.8


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_the_length_of_a_vector_does_not_matter(scale: float) -> None:
    rows, vectors = clustered(20)
    groups = load_groups(Dataset.from_list(rows))
    plain, scaled = (
        select_indices(
            groups, "diverse_best_k", k=4, embedder=lambda texts, s=s: np.stack([s * vectors[text] for text in texts])
        )
        for s in (1.0, scale)
    )
    assert plain == scaled
