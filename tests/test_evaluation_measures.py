"""The measures of an evaluation against values worked out by hand or by brute force."""

import doctest
import json
from decimal import Decimal
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interval_coverage import KEYS, null_verdicts

from mrt_plugin.evaluation.cases import Case, last_number, load_checker, read_cases
from mrt_plugin.evaluation.evaluate import differences
from mrt_plugin.evaluation.forgetting import (
    Score,
    compare_probe,
    compare_tasks,
    points_of_nll,
    probe,
    verdict,
)
from mrt_plugin.evaluation.result import ReferenceMeans, Sample, label, outcome
from mrt_plugin.evaluation.subject import (
    Subject,
    add_rewards,
    best_of,
    closeness,
    expected_best,
    levels,
    read_samples,
    reference_means,
)
from mrt_plugin.groups import DataError
from mrt_plugin.models.named_model import NamedModel, add_pools, parse_models
from mrt_plugin.planning.paired import Bootstrap, Measured
from mrt_plugin.scoring import load_embedder


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "module", ["evaluation.cases", "evaluation.findings", "models.named_model", "planning.paired"]
)
def test_the_examples_are_true(module: str) -> None:
    tried = doctest.testmod(import_module(f"mrt_plugin.{module}"))
    assert tried.attempted
    assert not tried.failed


def test_small_values() -> None:
    assert expected_best(np.array([3.0, 1.0, 2.0]), 2) == pytest.approx(8 / 3)  # of (3, 1), (3, 2) and (1, 2)
    assert points_of_nll(2.0, 2.05) == pytest.approx(4.88, abs=0.005)
    assert last_number("He pays 3 x $1,250.50 = $3,751.50.") == Decimal("3751.50")
    assert outcome("coverage", [0.01, 0.03]) == "better"
    assert outcome("nll_per_token", [0.01, 0.03]) == "worse"
    assert outcome("length", [-1.0, 2.0]) == "unclear"


def pass_at_k(n: int, c: int, k: int) -> float:
    return float(expected_best(np.arange(n) >= n - c, k))


class TestBestOf:
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(-10, 10), min_size=1, max_size=7), st.data())
    def test_is_the_mean_over_all_subsets(self, values: list[float], data: Any) -> None:
        m = data.draw(st.integers(1, len(values)))
        every = np.mean([max(subset) for subset in combinations(values, m)])
        assert expected_best(np.array(values), m) == pytest.approx(every, abs=1e-9)

    def test_pass_at_k_is_the_published_formula(self) -> None:
        from math import comb

        for n in (1, 5, 20):
            for c in range(n + 1):
                for k in range(1, n + 1):
                    assert pass_at_k(n, c, k) == pytest.approx(1 - comb(n - c, k) / comb(n, k), abs=1e-12)

    def test_is_unbiased_where_the_plain_estimate_is_not(self) -> None:
        """6 samples that are right with probability 0.2: pass@4 is 1 - 0.8^4, which 1 - (1 - c/n)^4 misses."""
        random = np.random.default_rng(0)
        right = random.binomial(6, 0.2, size=20000)
        truth = 1 - 0.8**4
        ours = np.mean([pass_at_k(6, int(c), 4) for c in right])
        plain = np.mean(1 - (1 - right / 6) ** 4)
        assert ours == pytest.approx(truth, abs=0.01)
        assert abs(plain - truth) > 0.03

    def test_what_cannot_be_had_is_refused(self) -> None:
        for m in (0, 4):
            with pytest.raises(ValueError, match=f"m={m} cannot be computed from 3 samples"):
                expected_best(np.zeros(3), m)
        assert levels(0) == []
        assert levels(16) == [1, 2, 4, 8, 16]
        assert (levels(12), levels(12, [1, 5, 50])) == ([1, 2, 4, 8, 12], [1, 5])


class TestCloseness:
    VECTORS = {  # noqa: RUF012
        "up": [0.0, 1.0],
        "right": [1.0, 0.0],
        "between": [3.0, 4.0],
        "": [0.0, 0.0],
    }

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([self.VECTORS[text] for text in texts])

    def test_by_hand(self) -> None:
        near, spread = closeness(["up", "right"], ["between", "right"], load_embedder(self.embed))
        assert best_of(near, 1) == pytest.approx(((0.8 + 0.0) / 2 + (0.6 + 1.0) / 2) / 2)
        assert best_of(near, 2) == pytest.approx((0.8 + 1.0) / 2)
        assert near.max(axis=0) == pytest.approx([0.8, 1.0])
        assert spread == pytest.approx(1 - 0.6)
        means = reference_means([Case("a", "?", ["up", "right"])], load_embedder(self.embed))
        assert means is not None
        assert means.diversity == pytest.approx(1.0)
        assert means.coverage == pytest.approx(0.0)

    def test_what_is_missing_is_not_a_number(self) -> None:
        embed = load_embedder(self.embed)
        near, spread = closeness(["up"], ["right"], embed)
        assert best_of(near, 1) == 0.0
        assert np.isnan(best_of(near, 2))
        assert np.isnan(spread)
        assert reference_means([Case("a", "?", ["up"])], embed) == ReferenceMeans(1.0)
        assert reference_means([Case("a", "?")], embed) is None
        near, spread = closeness([], ["up", ""], embed)
        assert np.isnan(best_of(near, 1))
        assert spread == 1.0  # an empty sample is like no other
        near, _ = closeness(["up"], [], embed)
        assert np.isnan(best_of(near, 1))


class TestIntervals:
    def test_cover_the_truth_as_often_as_they_say(self) -> None:
        """Means of skewed values over 40 prompts, and of a ratio: 95 % intervals hold the truth in 90 % or more."""
        random = np.random.default_rng(1)
        held = {"mean": 0, "ratio": 0, "difference": 0}
        repetitions = 300
        boot = Bootstrap(40)
        for _ in range(repetitions):
            values = random.exponential(2.0, 40)
            low, high = boot.interval(Measured.mean(values))  # type: ignore[misc]
            held["mean"] += low <= 2.0 <= high
            tokens = random.integers(5, 50, 40).astype(float)
            low, high = boot.interval(Measured(tokens * random.normal(3, 1, 40), tokens))  # type: ignore[misc]
            held["ratio"] += low <= 3.0 <= high
            _, ends, _ = boot.difference(Measured.mean(values + random.normal(0.5, 1, 40)), Measured.mean(values))
            held["difference"] += ends[0] <= 0.5 <= ends[1]  # type: ignore[index]
        for name, count in held.items():
            assert 0.90 <= count / repetitions <= 0.985, name

    @pytest.mark.slow
    def test_a_null_evaluation_shows_a_verdict_as_seldom_as_it_says(self) -> None:
        """Twelve measures without any difference: each interval by itself shows one in half of the evaluations."""
        alone, corrected = null_verdicts(measures=12, prompts=40, repetitions=100)
        assert alone > 0.3
        assert corrected <= 0.1

    def test_a_real_difference_survives_the_correction(self) -> None:
        random = np.random.default_rng(4)
        noise = {key: random.gamma(2, 1, 40) for key in KEYS}
        measured = [{key: Measured.mean(values) for key, values in noise.items()}]
        measured += [{key: Measured.mean(random.permutation(values)) for key, values in noise.items()}]
        measured[1]["coverage", 8] = Measured.mean(noise["coverage", 8] + 0.2 + random.normal(0, 0.2, 40))
        subjects = [Subject(NamedModel(name, name), own) for name, own in zip(("a", "b"), measured, strict=True)]
        rows = {(row.measure, row.m): row for row in differences(subjects, subjects[0], Bootstrap(40))}
        assert rows["coverage", 8].outcome == "better"
        assert all(row.p <= row.p_corrected <= 1 for row in rows.values())  # type: ignore[operator]

    def test_fewer_than_five_prompts_have_neither_interval_nor_verdict(self) -> None:
        for prompts in (4, 5):
            one, other = (Measured.mean(np.arange(prompts) + start) for start in (10.0, 0.0))
            _, interval, _ = Bootstrap(prompts).difference(one, other)
            assert (interval is None) == (Bootstrap(prompts).chance(one, other) is None) == (prompts < 5)

    def test_pairing_makes_a_difference_clear_that_is_not_clear_unpaired(self) -> None:
        random = np.random.default_rng(2)
        hard = random.normal(0, 5, 50)
        one, other = Measured.mean(hard + 0.3 + random.normal(0, 0.2, 50)), Measured.mean(hard)
        boot = Bootstrap(50)
        _, paired, prompts = boot.difference(one, other)
        assert prompts == 50
        assert paired is not None
        assert 0 < paired[0] < 0.3 < paired[1]
        ends, others = boot.interval(one), boot.interval(other)
        assert ends is not None
        assert others is not None
        assert ends[0] < others[1]

    def test_only_prompts_that_both_have(self) -> None:
        one = Measured.mean(np.array([1.0, 2.0, np.nan, 4.0]))
        other = Measured.mean(np.array([0.0, np.nan, 7.0, 1.0]))
        assert Bootstrap(4).difference(one, other)[::2] == (2.0, 2)
        assert one.value == pytest.approx(7 / 3)
        nothing = Measured.mean(np.full(4, np.nan))
        assert nothing.value is None
        assert Bootstrap(4).difference(one, nothing) == (None, None, 0)
        assert Bootstrap(1).interval(Measured.mean(np.array([1.0]))) is None

    def test_the_same_twice_differs_by_nothing(self) -> None:
        same = Measured.mean(np.random.default_rng(3).normal(size=9))
        assert Bootstrap(9).difference(same, same) == (0.0, [0.0, 0.0], 9)
        assert outcome("coverage", [0.0, 0.0]) == "unclear"

    def test_labels(self) -> None:
        assert (label("coverage", 4), label("pass", 1), label("diversity")) == ("coverage of 4", "pass@1", "diversity")


class TestCheckers:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("A: 18", "18"),
            ("#### 1,234.50", "1234.50"),
            ("so 16-3 = 13 and <<9*2=18>>18", "18"),
            (r"\boxed{-7}", "-7"),
            ("It costs $2.50.", "2.50"),
            ("5kg", "5"),
            ("− 3 or −4", "-4"),
            ("none at all", None),
            ("", None),
        ],
    )
    def test_last_number(self, text: str, number: str | None) -> None:
        assert str(last_number(text)) == str(number)

    def test_numeric_trusts_the_best_references(self) -> None:
        case = Case("1", "?", ["A: 18", "A: 26"], [1.0, 0.0])
        check = load_checker("numeric")
        assert check(case, "The answer is 18.0") is True
        assert check(case, "The answer is 26") is False
        assert check(Case("1", "?", ["A: 18", "A: 26"]), "26") is True
        assert check(Case("1", "?", ["no number"]), "26") is None
        assert check(case, "no number") is False

    def test_exact(self) -> None:
        check = load_checker("exact")
        case = Case("1", "?", ["An  Apple.\n", [{"role": "assistant", "content": "A pear."}]])
        assert check(case, "an apple.") is True
        assert check(case, "A pear.") is True
        assert check(case, "An apple") is False
        assert check(Case("1", "?"), "An apple") is None

    def test_a_function_of_ones_own(self, tmp_path: Path) -> None:
        code = "def good(prompt, response, references):\n    return len(response) < len(prompt)\n"
        code += "def bad(prompt, response, references):\n    return 'yes'\n"
        code += "def fails(prompt, response, references):\n    return references[0]\n"
        (tmp_path / "own.py").write_text(code)
        case = Case("q7", "A long question?")
        good = load_checker(f"{tmp_path}/own.py:good")
        assert good(case, "short") is True
        assert good(case, "longer than the question") is False
        with pytest.raises(ValueError, match="gave 'yes' for prompt q7: it must give True or False"):
            load_checker(f"{tmp_path}/own.py:bad")(case, "")
        with pytest.raises(ValueError, match="failed on prompt q7: IndexError"):
            load_checker(f"{tmp_path}/own.py:fails")(case, "")
        with pytest.raises(ValueError, match="choose exact, numeric, or a function"):
            load_checker("regex")


def test_rewards_of_mixed_prompts_and_empty_samples() -> None:
    cases = [Case("a", "One?"), Case("b", [{"role": "user", "content": "Two?"}]), Case("c", "Three?")]
    samples = [[Sample("x"), Sample("")], [Sample("yyy")], []]
    seen = []

    def scorer(prompt: Any, responses: list[str]) -> list[float]:
        seen.append(prompt)
        return [float(len(response)) for response in responses]

    add_rewards(cases, samples, scorer)
    assert [[one.reward for one in some] for some in samples] == [[1.0, 0.0], [3.0], []]
    assert seen == [[{"role": "user", "content": "One?"}], [{"role": "user", "content": "Two?"}]]
    with pytest.raises(ValueError, match="takes one scorer"):
        add_rewards(cases, samples, "one, two")


class TestCases:
    def test_with_and_without_references(self, tmp_path: Path) -> None:
        data = write(
            tmp_path / "data.jsonl",
            [
                {"id": "a", "prompt": "One?", "responses": ["1", "uno"], "scores": [1, 0]},
                {"id": "b", "prompt": "Two?", "responses": []},
                {"id": "c", "prompt": "Three?", "responses": ["3"], "scores": [0.5]},
            ],
        )
        cases = {case.id: case for case in read_cases(data)}
        assert list(cases) == ["a", "c", "b"]
        assert cases["a"].right == ["1"]
        assert cases["b"].references == []

    @pytest.mark.parametrize(
        "rows",
        [
            [{"prompt": "One?"}, {"prompt": "Two?"}],
            [{"messages": [{"role": "user", "content": "One?"}]}, {"messages": [{"role": "user", "content": "Two?"}]}],
        ],
    )
    def test_bare_prompts(self, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
        cases = read_cases(write(tmp_path / "data.jsonl", rows))
        assert len(cases) == 2
        assert not any(case.references for case in cases)

    def test_flat_rows_and_repeated_prompts_become_one_case(self, tmp_path: Path) -> None:
        flat = [{"prompt": "One?", "completion": text} for text in ("1", "uno")]
        (case,) = read_cases(write(tmp_path / "flat.jsonl", flat))
        assert case.references == ["1", "uno"]
        twice = [{"id": name, "prompt": "One?", "responses": [name]} for name in ("x", "y")]
        (case,) = read_cases(write(tmp_path / "twice.jsonl", twice))
        assert case.references == ["x", "y"]

    def test_text_files_and_a_draw_of_prompts(self, tmp_path: Path) -> None:
        (tmp_path / "prompts.txt").write_text("".join(f"Prompt {number}?\n" for number in range(50)))
        every = [case.prompt for case in read_cases(str(tmp_path / "prompts.txt"))]
        some = [case.prompt for case in read_cases(str(tmp_path / "prompts.txt"), max_prompts=10, seed=3)]
        assert len(every) == 50
        assert len(some) == 10
        assert some == [prompt for prompt in every if prompt in some]
        assert some != [case.prompt for case in read_cases(str(tmp_path / "prompts.txt"), max_prompts=10, seed=4)]

    def test_empty_data_and_other_columns(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="it is empty"):
            read_cases(write(tmp_path / "empty.jsonl", []))
        with pytest.raises(DataError, match="Name the column `prompt`"):
            read_cases(write(tmp_path / "other.jsonl", [{"question": "One?"}]))


class TestSamples:
    def test_cut_off_draws_come_back_in_their_place(self, tmp_path: Path) -> None:
        pool = write(
            tmp_path / "pool.jsonl",
            [
                {
                    "prompt": "One?",
                    "responses": ["old", "first", "third"],
                    "finish_reasons": ["stop", "stop", None],
                    "samples": [None, {"draw": 0}, {"draw": 2}],
                    "truncated": [{"text": "sec", "finish_reason": "length", "draw": 1}],
                },
                {
                    "prompt": "Two?",
                    "responses": [[{"role": "assistant", "content": "2"}]],
                    "finish_reasons": ["length"],
                },
            ],
        )
        one, two, three = read_samples(pool, [Case("a", "One?"), Case("b", "Two?"), Case("c", "Three?")])
        assert one == [Sample("first"), Sample("sec", cut_off=True), Sample("third")]
        assert two == [Sample("2", cut_off=True)]
        assert three == []

    def test_a_pool_of_other_prompts_or_another_shape(self, tmp_path: Path) -> None:
        pool = write(tmp_path / "pool.jsonl", [{"prompt": "Else?", "responses": ["x"]}])
        with pytest.raises(DataError, match="samples for none of the 1 prompts"):
            read_samples(pool, [Case("a", "One?")])
        flat = write(tmp_path / "flat.jsonl", [{"prompt": "One?", "completion": "x"}])
        with pytest.raises(DataError, match="line 1, column `responses`: samples are rows with"):
            read_samples(flat, [Case("a", "One?")])


class TestNames:
    def test_bases_adapters_and_names(self, tmp_path: Path) -> None:
        adapter = tmp_path / "run"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base-1b"}')
        (adapter / "config.json").write_text("{}")  # the base's, as Axolotl leaves it there
        (adapter / "adapter_model.safetensors").touch()
        odd = tmp_path / "c++"
        odd.mkdir()
        parsed = parse_models(["org/base-1b", f"org/base-1b+{adapter}", str(adapter), f"kept={odd}"])
        assert [(model.path, model.adapter) for model in parsed] == [
            ("org/base-1b", None),
            ("org/base-1b", str(adapter)),
            ("org/base-1b", str(adapter)),
            (str(odd), None),
        ]
        assert parsed[0].name == "base-1b"
        assert [model.name for model in parsed[2:]] == ["run", "kept"]
        assert len({model.file_name for model in parsed}) == 4
        assert parse_models(["base"], adapter="outputs/run") == [NamedModel("base+run", "base", "outputs/run")]

    def test_mistakes(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        with pytest.raises(ValueError, match="does not say what it was trained on"):
            parse_models([str(tmp_path)])
        with pytest.raises(ValueError, match="Two models are called 'a'"):
            parse_models(["a=x", "a=y"])
        with pytest.raises(ValueError, match="--adapter goes with one --model, and there are 2"):
            parse_models(["x", "y"], adapter="z")
        with pytest.raises(ValueError, match="has an adapter already"):
            parse_models(["x+y"], adapter="z")
        with pytest.raises(ValueError, match="write PATH, BASE"):
            parse_models(["x+"])

    def test_files_of_samples(self) -> None:
        models = add_pools(parse_models(["path/base"]), ["base=a.jsonl", "folder/other.samples.jsonl"])
        assert [(model.name, model.path, model.pool) for model in models] == [
            ("base", "path/base", "a.jsonl"),
            ("other", None, "folder/other.samples.jsonl"),
        ]
        with pytest.raises(ValueError, match="two files of samples"):
            add_pools(models, ["base=b.jsonl"])


class TestForgetting:
    def test_the_probe_is_sixty_texts_of_five_kinds(self) -> None:
        kinds = [text["kind"] for text in probe()]
        assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
            ["facts", "prose", "code", "questions", "reasoning"], 12
        )
        assert len({text["text"] for text in probe()}) == 60

    def test_points_and_their_thresholds(self) -> None:
        """A token that had probability 0.5 and has 0.49 has lost 2 points; a score of 0.64 that is 0.59, 5."""
        assert points_of_nll(-np.log(0.5), -np.log(0.49)) == pytest.approx(2.0)
        assert points_of_nll(1.0, 0.9) < 0
        assert [verdict(points) for points in (-3.0, 1.99, 2.0, 4.99, 5.0)] == [
            "kept",
            "kept",
            "flagged",
            "flagged",
            "significant",
        ]

    def test_before_and_after(self) -> None:
        random = np.random.default_rng(0)
        tokens = random.integers(10, 30, 60)
        before = Measured(2.0 * tokens, tokens)
        after = Measured((2.0 + random.normal(0.03, 0.01, 60)) * tokens, tokens)
        rows = compare_probe(before, after)
        assert [row.kind for row in rows] == ["all", "facts", "prose", "code", "questions", "reasoning"]
        whole = rows[0]
        assert whole.points == pytest.approx(100 * (1 - np.exp(-0.03)), abs=0.4)
        assert whole.interval[0] < whole.points < whole.interval[1]
        assert whole.verdict == "flagged"
        assert rows[1].texts == 12
        assert compare_probe(before, Measured(after.values, tokens + 1)) is None
        assert {row.verdict for row in compare_probe(before, before)} == {"kept"}

    def test_tasks(self) -> None:
        def score(value: float, stderr: float | None = 0.01, higher: bool = True) -> Score:
            return Score(value, stderr, higher)

        before = {"t": {"acc": score(0.64), "ppl": score(12.0, higher=False), "f1": score(0.5, None)}}
        after = {"t": {"acc": score(0.58), "ppl": score(14.0, higher=False), "f1": score(0.51, None), "new": score(1)}}
        rows = {row.metric: row for row in compare_tasks(before, after)}
        assert rows["acc"].points == pytest.approx(6.0)
        assert rows["acc"].verdict == "significant"
        assert rows["acc"].interval == pytest.approx([6 - 196 * 0.02**0.5 / 10, 6 + 196 * 0.02**0.5 / 10])
        assert rows["ppl"].points is None
        assert (rows["f1"].verdict, rows["f1"].interval) == ("kept", None)
        assert rows["new"].before is None

    def test_tasks_are_compared_document_by_document(self) -> None:
        """12 of 200 documents lost, 2 gained: unpaired, two accuracies of 0.6 and 0.55 are within chance."""

        def score(right: np.ndarray) -> dict[str, dict[str, Score]]:
            error = float(right.std() / np.sqrt(200))
            documents = dict(enumerate(right.astype(float).tolist()))
            return {"t": {"acc": Score(float(right.mean()), error, True, documents)}}

        before = np.arange(200) < 120
        after = before.copy()
        after[:12], after[-2:] = False, True
        (row,) = compare_tasks(score(before), score(after))
        assert row.points == pytest.approx(5.0)
        assert 1 < row.interval[0] < 5 < row.interval[1] < 9
        unpaired = 196 * np.hypot(*(part["t"]["acc"].stderr for part in (score(before), score(after))))
        assert row.points - unpaired < 0
