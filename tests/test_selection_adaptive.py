"""Adaptive K and the limit on candidates."""

import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset

from mrt_plugin import load_groups, select
from mrt_plugin.options import SelectionOptions
from mrt_plugin.selection import SELECTORS, run_selection, select_indices
from recipes.benchmarks.selection import compare, stream

CHOOSING = [name for name in SELECTORS if name != "all"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_groups(count: int = 30, seed: int = 0) -> Dataset:
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        size = draw.randint(1, 12)
        words = [f"{'abcdefgh'[draw.randint(0, number % 8)]}{draw.randint(0, 9)}" for _ in range(size)]
        responses = [f"answer {word} to {number} " * draw.randint(1, 4) for word in words]
        rows.append({"prompt": f"prompt {number}", "responses": responses, "scores": [draw.random() for _ in words]})
    return load_groups(Dataset.from_list(rows))


class TestCandidates:
    @pytest.mark.parametrize("selector", CHOOSING)
    def test_the_choice_is_that_of_a_smaller_pool(self, selector: str) -> None:
        groups = make_groups()
        capped = select_indices(groups, "random_k", k=100, n=6)  # keeps every candidate
        assert [len(kept) for kept in capped] == [min(6, len(r)) for r in groups["responses"]]
        smaller = groups.map(
            lambda group, index: {
                name: [group[name][item] for item in capped[index]] for name in ("responses", "scores")
            },
            with_indices=True,
        )
        assert select(groups, selector, k=3, n=6).to_list() == select(smaller, selector, k=3).to_list()

    def test_more_candidates_keep_the_old_ones(self) -> None:
        groups = make_groups()
        few, more = (select_indices(groups, "random_k", k=100, n=n) for n in (3, 7))
        assert all(set(a) <= set(b) for a, b in zip(few, more, strict=True))
        report = run_selection(groups, SelectionOptions("random_k", k=2, n=3)).report
        assert report.left_out == sum(max(len(r) - 3, 0) for r in groups["responses"])
        assert any("beyond n candidates" in note for note in report.notes())

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="n=0 must be a whole number"):
            select(make_groups(2), "random_k", k=1, n=0)
        with pytest.raises(ValueError, match="takes neither n"):
            select(make_groups(2), "all", n=3)


class TestAdaptive:
    @pytest.mark.parametrize("selector", CHOOSING)
    def test_each_group_is_chosen_as_with_its_own_k(self, selector: str) -> None:
        groups = make_groups()
        picks = select_indices(groups, selector, k=3, allocation="adaptive", min_k=2, max_k=6)
        sizes = [len(responses) for responses in groups["responses"]]
        assert sum(map(len, picks)) == 90
        assert len(set(map(len, picks))) > 2
        for index, (picked, size) in enumerate(zip(picks, sizes, strict=True)):
            assert min(2, size) <= len(picked) <= min(6, size)
            assert select_indices(groups.select([index]), selector, k=len(picked)) == [picked]

    def test_any_order_and_any_number_of_processes(self) -> None:
        groups = make_groups()
        told: dict[str, Any] = {"selector": "diverse_k", "allocation": "adaptive", "mean_k": 2.5, "n": 8}
        chosen = select(groups, **told).to_list()
        shuffled = select(groups.shuffle(seed=3), **told, num_proc=2).to_list()
        assert sorted(shuffled, key=str) == sorted(chosen, key=str)

    def test_more_for_those_that_differ_more(self) -> None:
        same = {"prompt": "same", "responses": ["the very same"] * 8}
        other = {"prompt": "other", "responses": [word * 9 for word in "abcdefgh"]}
        picks = select_indices(load_groups(Dataset.from_list([same, other])), "random_k", k=4, allocation="adaptive")
        assert list(map(len, picks)) == [1, 7]

    def test_length_and_columns(self) -> None:
        rows = [
            {"prompt": "even", "responses": ["abcd", "efgh", "ijkl", "mnop"]},
            {"prompt": "uneven", "responses": ["a", "b" * 60, "c" * 200, "d" * 9]},
        ]
        groups = load_groups(Dataset.from_list(rows))
        assert _sizes(groups, "length") == [1, 3]
        assert _sizes(groups.add_column("hard", [9.0, 1e-4]), "hard") == [3, 1]  # type: ignore[call-arg]
        nll = [[1.0, 4.0, 2.0, 9.0], [2.0, 2.0, 2.0, 2.1]]
        assert _sizes(groups.add_column("nll", nll), "nll") == [3, 1]  # type: ignore[call-arg]

    def test_what_is_refused(self) -> None:
        groups = make_groups(3)
        with pytest.raises(ValueError, match="allocation_score='nll' is neither"):
            _sizes(groups, "nll")
        with pytest.raises(ValueError, match="neither a finite number nor"):
            _sizes(groups.add_column("nll", [1.0, float("nan"), 2.0]), "nll")  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="allocation='greedy' is unknown"):
            select(groups, "random_k", k=2, allocation="greedy")  # type: ignore[arg-type]

    def test_the_report_says_how(self) -> None:
        report = run_selection(make_groups(), SelectionOptions("random_k", k=3, allocation="adaptive")).report
        assert report.remarks[0].startswith("adaptive allocation: 90 responses over 30 prompts")


def _sizes(groups: Dataset, score: str) -> list[int]:
    picks = select_indices(groups, "random_k", mean_k=2.0, allocation="adaptive", allocation_score=score)
    return list(map(len, picks))


class TestBench:
    def test_the_picks_are_those_of_the_definition(self) -> None:
        assert compare(64, 32, 16, 4, rounds=1)["same picks"] == 8  # it raises where they are not

    def test_streaming(self, tmp_path: Path) -> None:
        found = stream(300, 6, 8, 2, num_proc=2, directory=tmp_path)
        assert found["prompts/s"] > 0
        assert not list(tmp_path.glob("mrt-bench-*"))


def test_embeddings_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="gave a vector that is not finite, for the text 'answer"):
        select(make_groups(), "diverse_k", k=1, embedder=lambda texts: np.full((len(texts), 3), np.nan))
