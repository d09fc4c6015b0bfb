"""A judge that compares samples: win rates, position and length biases, agreement with rewards, and what it costs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import CliRunner
from helpers.judge_server import serve_judge
from helpers.selecting import write_lines
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

import mrt_plugin
from mrt_plugin.cli import app
from mrt_plugin.endpoint import EndpointOptions
from mrt_plugin.evaluation import How, evaluation_report, read_cases
from mrt_plugin.evaluation.result import WinRate
from mrt_plugin.evaluation.win_rate import PENALTY, Comparison, fit_lengths, length_controlled, wilson, win_rate
from mrt_plugin.models.named_model import add_pools
from mrt_plugin.planning.paired import Bootstrap
from mrt_plugin.scoring import Judge

PROMPTS = 40


def verdict(first: float, second: float) -> str:
    return f"Reasons.\nVerdict: {'A' if first > second else 'B' if second > first else 'tie'}"


def honest(prompt: str, responses: list[str]) -> str:
    return verdict(*(text.count("good") for text in responses))


def the_first(prompt: str, responses: list[str]) -> str:
    return "Verdict: A"


def the_longer(prompt: str, responses: list[str]) -> str:
    return verdict(*map(len, responses))


def rows(quality: list[int], lengths: list[int]) -> list[dict[str, Any]]:
    """A sample per prompt, with so many times `good` and so many words."""
    pairs = enumerate(zip(quality, lengths, strict=True))
    texts = [(index, " ".join(["good"] * good + ["word"] * (length - good))) for index, (good, length) in pairs]
    return [{"prompt": f"Question {index}?", "responses": [text]} for index, text in texts]


def lengths(seed: int, factor: float) -> list[int]:
    return (3 + factor * np.random.default_rng(seed).lognormal(3, 0.6, PROMPTS)).astype(int).tolist()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """`base`, `better` on three prompts of four, `wordy`, which is longer and equally good, and the prompts."""
    some = [index % 4 for index in range(PROMPTS)]
    ones = [1] * PROMPTS
    made = {
        "base": rows(ones, lengths(0, 1)),
        "better": rows([2 if index else 0 for index in some], lengths(0, 1)),
        "wordy": rows(ones, lengths(1, 1.8)),
        "data": [{"prompt": f"Question {index}?", "responses": ["good good good"]} for index in range(PROMPTS)],
    }
    return {name: write_lines(tmp_path / f"{name}.jsonl", found) for name, found in made.items()}


def judged(server: Any, files: dict[str, Path], *names: str, **more: Any) -> tuple[Any, list[WinRate]]:
    judge = Judge(url=server.url, model="judge", endpoint=EndpointOptions(backoff=0.01), **more.pop("judge", {}))
    how = How(files["data"].parent / "evaluation", m=0, judge=judge, **more)
    models = add_pools([], [f"{name}={files[name]}" for name in names])
    result = mrt_plugin.evaluate(read_cases(files["data"]), models, how)
    return result, result.judged


class TestWinRate:
    def test_an_honest_judge(self, files: dict[str, Path]) -> None:
        with serve_judge(honest) as server:
            result, (row, _) = judged(server, files, "base", "better", "wordy")
            assert len(server.asked) == 2 * 2 * PROMPTS
        assert (row.model, row.against, row.outcome) == ("better", "base", "better")
        assert (row.wins, row.ties, row.losses, row.unreadable) == (30, 0, 10, 0)
        assert row.rate == 0.75
        assert row.interval == pytest.approx([0.598, 0.858], abs=1e-3)
        assert row.first_shown == 0.5
        assert row.consistent == 1
        assert result.judged[1].ties == PROMPTS
        assert result.judged[1].outcome == "unclear"
        text = evaluation_report(result)
        assert "What a judge prefers" in text
        assert "75.0% (59.8% to 85.8%)" in text
        json.dumps(result.as_dict(), allow_nan=False)

    def test_a_judge_that_sees_only_the_order(self, files: dict[str, Path]) -> None:
        with serve_judge(the_first) as server:
            result, (row,) = judged(server, files, "base", "better")
        assert (row.rate, row.first_shown, row.consistent) == (0.5, 1, 0)
        assert row.outcome == "unclear"
        assert row.position_bias
        assert "better: the judge has a position bias: 100% of its verdicts are" in " ".join(result.notes)

    def test_a_judge_that_sees_only_the_length(self, files: dict[str, Path]) -> None:
        with serve_judge(the_longer) as server:
            _, (row,) = judged(server, files, "base", "wordy")
        assert row.rate is not None
        assert row.rate > 0.65
        assert row.longer == pytest.approx(row.rate, abs=0.05)
        assert row.length_controlled == pytest.approx(0.5, abs=0.1)
        assert row.length_controlled_interval is not None
        assert row.length_controlled_interval[0] < 0.5 < row.length_controlled_interval[1]

    def test_length_control_leaves_quality(self, files: dict[str, Path]) -> None:
        with serve_judge(honest) as server:
            _, (row,) = judged(server, files, "wordy", "better")
        assert row.rate == 0.75
        assert row.length_controlled is not None
        assert row.length_controlled > 0.65

    def test_always_longer_cannot_be_told_from_better(self, files: dict[str, Path]) -> None:
        write_lines(files["wordy"], rows([1] * PROMPTS, [length + 3 for length in lengths(0, 1)]))
        with serve_judge(the_longer) as server:
            result, (row,) = judged(server, files, "base", "wordy")
        assert row.rate == 1
        assert row.interval is not None
        assert row.interval[0] < 0.95
        assert row.length_controlled is None
        assert "longer on every prompt, so length and quality cannot be told apart" in " ".join(result.notes)

    def test_a_model_alone_meets_the_references(self, files: dict[str, Path]) -> None:
        with serve_judge(honest) as server:
            _, (row,) = judged(server, files, "better")
        assert (row.against, row.rate) == ("the references", 0)

    def test_equal_texts_are_ties_without_a_call(self, files: dict[str, Path]) -> None:
        files["same"] = write_lines(files["base"].with_name("same.jsonl"), rows([1] * PROMPTS, lengths(0, 1)))
        with serve_judge(the_first) as server:
            _, (row,) = judged(server, files, "base", "same")
            assert server.asked == []
        assert (row.identical, row.rate, row.first_shown) == (PROMPTS, 0.5, None)

    def test_unreadable_answers_are_left_out_and_counted(self, files: dict[str, Path]) -> None:
        def sometimes(prompt: str, responses: list[str]) -> str:
            return "Hm." if prompt in ("Question 3?", "Question 4?") else honest(prompt, responses)

        with serve_judge(sometimes) as server:
            result, (row,) = judged(server, files, "base", "better")
        assert (row.pairs, row.unreadable, row.prompts) == (PROMPTS - 2, 2, PROMPTS - 2)
        assert row.rate == 29 / 38
        assert "better: 2 of 40 pairs are left out" in " ".join(result.notes)

    @pytest.mark.parametrize("answer", ["", "Both are lovely.", "Verdict: C"])
    def test_a_judge_that_answers_nonsense_or_nothing(self, files: dict[str, Path], answer: str) -> None:
        with (
            serve_judge(lambda prompt, responses: answer) as server,
            pytest.raises(ValueError, match="80 of 80 answers are unreadable"),
        ):
            judged(server, files, "base", "better")

    def test_failures_change_nothing_and_a_second_run_asks_nothing(self, files: dict[str, Path]) -> None:
        with serve_judge(honest) as server:
            kinds = ["500", "429", "garbage", "ok"]
            server.behave = lambda number, body: kinds[number % 4] if number < 60 else "ok"
            _, first = judged(server, files, "base", "better")
            before = len(server.asked)
            _, again = judged(server, files, "base", "better")
            assert len(server.asked) == before
        assert first == again
        assert first[0].rate == 0.75

    def test_agreement_with_a_scorer(self, files: dict[str, Path]) -> None:
        def scorer(prompt: Any, responses: list[str]) -> list[float]:
            return [text.count("good") if "Question 1" not in prompt else -text.count("good") for text in responses]

        with serve_judge(honest) as server:
            result, (row,) = judged(server, files, "base", "better", scorer=scorer)
        assert row.reward is not None
        odd = 11  # questions 1 and 10 to 19
        assert (row.reward.pairs, row.reward.decided) == (40, 40)
        assert row.reward.accuracy == pytest.approx(29 / 40)
        assert odd == 40 - 29
        assert row.reward.kendall is not None
        assert 0 < row.reward.kendall < 1
        assert "the judge and the rewards" in evaluation_report(result)


class TestStatistics:
    def test_wilson_is_that_of_scipy(self) -> None:
        for wins, count in ((0, 5), (3, 7), (40, 40), (61, 200)):
            found = binomtest(wins, count).proportion_ci(method="wilson")
            assert wilson(wins / count, count) == pytest.approx([found.low, found.high], abs=1e-9)

    def test_the_fit_is_that_of_scikit_learn(self) -> None:
        random = np.random.default_rng(0)
        x, y = random.normal(size=60), random.choice([0, 0.25, 0.5, 1], size=60)
        weights = random.integers(0, 4, size=(5, 60)).astype(float)
        weights[0] = 1
        for row, (theta, phi) in zip(weights, fit_lengths(x, y, weights), strict=True):
            design = np.stack([np.ones_like(x), x], axis=1)
            slow = LogisticRegression(C=1 / PENALTY, fit_intercept=False, tol=1e-10, max_iter=10000)
            both = np.concatenate([row * y, row * (1 - y)])
            slow.fit(np.tile(design, (2, 1)), np.repeat([1, 0], len(x)), sample_weight=both)
            assert [theta, phi] == pytest.approx(slow.coef_[0], abs=1e-5)

    @pytest.mark.parametrize("separated", [False, True])
    def test_the_fit_converges(self, separated: bool) -> None:
        x = np.linspace(-1, 1, 200)
        y = (x > 0.01).astype(float) if separated else np.full(200, 0.5)
        theta, phi = fit_lengths(x, y, np.ones((1, 200)))[0]
        p = 1 / (1 + np.exp(-theta - phi * x))
        assert abs((p - y).sum() + PENALTY * theta) < 1e-6
        assert abs(((p - y) * x).sum() + PENALTY * phi) < 1e-6

    def test_a_length_driven_judge_is_corrected_and_its_interval_holds_one_half(self) -> None:
        random = np.random.default_rng(0)
        held = 0
        for _ in range(20):
            difference = random.lognormal(4, 0.5, 100) * 1.4 - random.lognormal(4, 0.5, 100)
            chance = 1 / (1 + np.exp(-2 * np.tanh(difference / difference.std())))
            points = (random.random(100) < chance).astype(float)
            _, ends = length_controlled(np.arange(100), points, difference, Bootstrap(100), 100)
            assert ends is not None
            held += ends[0] <= 0.5 <= ends[1]
        assert held >= 17

    def test_a_pair_needs_both_orders(self) -> None:
        assert Comparison(0, "A", None).points is None
        assert Comparison(0, "A", "A").points == 0.5
        assert Comparison(0, "A", "B").points == 1
        assert Comparison(0, "tie", "A").points == 0.25

    def test_each_prompt_has_one_vote(self) -> None:
        pairs = [Comparison(0, "A", "B")] * 3 + [Comparison(1, "B", "A")]
        row = win_rate("one", "other", pairs, Bootstrap(3), 3)
        assert (row.rate, row.prompts, row.pairs, row.bootstrap) == (0.5, 2, 4, None)


class TestCommand:
    def run(self, *arguments: Any) -> Any:
        return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])

    def test_it_says_what_it_costs_and_then_judges(self, files: dict[str, Path], tmp_path: Path) -> None:
        pools = [part for name in ("base", "better") for part in ("--pool", f"{name}={files[name]}")]
        with serve_judge(honest) as server:
            how = [*pools, "--data", files["data"], "--judge", f"judge@{server.url}", "--output", tmp_path / "e"]
            dry = self.run(*how, "--dry-run")
            assert dry.exit_code == 0, dry.output
            assert "80 questions, at most 160 calls" in dry.output
            assert server.asked == []
            refused = self.run(*how, "--max-calls", 79)
            assert refused.exit_code == 1
            assert "80 questions are to be asked, and at most 79 calls are allowed" in refused.output
            done = self.run(*how, "--json", "--max-calls", 80)
            assert done.exit_code == 0, done.output
            assert len(server.asked) == 80
        assert json.loads(done.stdout)["judged"][0]["rate"] == 0.75
        assert list((tmp_path / "e").glob("judge-*.journal"))

    def test_scores_by_a_judge(self, files: dict[str, Path], tmp_path: Path) -> None:
        def opinion(prompt: str, responses: list[str]) -> str:
            return f"Score: {1 + responses[0].count('good')}"

        with serve_judge(opinion) as server:
            how = ["--pool", f"better={files['better']}", "--data", files["data"], "--output", tmp_path / "e"]
            how += ["--scorer", f"judge:judge@{server.url}", "--score-cache", tmp_path / "cache"]
            dry = self.run(*how, "--dry-run")
            assert "40 questions, at most 80 calls" in dry.output
            done = self.run(*how, "--json")
            assert done.exit_code == 0, done.output
        values = {row["measure"]: row["value"] for row in json.loads(done.stdout)["models"][0]["measures"]}
        assert values["reward"] == pytest.approx(1 + 2 * 0.75)

    def test_nothing_to_compare(self, files: dict[str, Path], tmp_path: Path) -> None:
        prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Question {n}?"} for n in range(PROMPTS)])
        how = ["--pool", f"a={files['base']}", "--data", prompts, "--output", tmp_path / "e"]
        found = self.run(*how, "--judge", "large@http://127.0.0.1:9/v1")
        assert found.exit_code == 1
        assert "give two of them, or data with references" in found.output

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--judge", "large"], "names no judge"),
            (["--dry-run"], "needs a judge"),
            (["--judge-samples", "2"], "needs --judge"),
        ],
    )
    def test_refusals(self, files: dict[str, Path], more: list[str], message: str) -> None:
        found = self.run("--pool", f"a={files['base']}", "--data", files["data"], *more)
        assert found.exit_code == 1
        assert message in found.output
