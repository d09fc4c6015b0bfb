"""What an evaluation says it found: its headline, its strips and its next command."""

import shlex
from dataclasses import replace
from typing import Any

import pytest

from mrt_plugin.evaluation.evaluate_report import evaluation_report, forgetting_rows
from mrt_plugin.evaluation.findings import change_text, headline, next_step, points_interval, points_text, strips
from mrt_plugin.evaluation.result import (
    CaseCounts,
    Difference,
    Evaluation,
    Forgetting,
    Interval,
    ModelResult,
    Outputs,
    ProbeChange,
    Sample,
    SampleCounts,
    Value,
    WinRate,
    outcome,
)

HOW = {
    "m": 4,
    "folder": "evaluation",
    "endpoint": None,
    "settings": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 512, "seed": 0},
    "embedder": "lexical",
    "scorer": None,
    "checker": None,
    "judge": None,
    "load_in_4bit": False,
}
MODELS = {"base": ("a/base", None), "tuned": ("a/base", "runs/my run"), "other": ("a/merged", None)}


def difference(
    name: str, value: float, low: float, high: float, *, model: str = "tuned", p: float = 0.0
) -> Difference:
    m = 4 if name == "coverage" else None
    return Difference(model, name, m, value, [low, high], None, 40, p, p, outcome(name, [low, high], p))


def lost(points: float, low: float, high: float, verdict: str) -> Forgetting:
    return Forgetting("tuned", "a/base", [ProbeChange("all", 60, 3.0, 3.1, points, [low, high], verdict)], [])


def evaluation(*rows: Difference, models: tuple[str, ...] = ("base", "tuned"), **changes: Any) -> Evaluation:
    keys = {(row.measure, row.m) for row in rows} or {("nll_per_token", None)}
    counts = SampleCounts(160, 4, 4, 0, 0)
    found = [
        ModelResult(
            name,
            *MODELS[name],
            None,
            counts,
            [Value(*key, 2.0 - turn, [1.5, 2.5], 40) for key in sorted(keys, key=str)],
        )
        for turn, name in enumerate(models)
    ]
    whole = Evaluation(
        data=CaseCounts("held out.jsonl", 40, 40, 160, 4, 4, 4, 0),
        baseline="base",
        models=found,
        references=None,
        differences=list(rows),
        forgetting=[],
        outputs=[],
        per_prompt=[],
        intervals={"level": 0.95, "draws": 2000, "seed": 0},
        points={"flagged": 2.0, "significant": 5.0},
        how=HOW,
    )
    return replace(whole, **changes)


NLL = difference("nll_per_token", -0.4, -0.5, -0.3)
COVERAGE = difference("coverage", -0.1, -0.15, -0.05)
UNCLEAR = difference("coverage", 0.02, -0.03, 0.07, p=0.4)


class TestHeadline:
    def test_a_gain_has_its_number_and_interval(self) -> None:
        first, more, basis = headline(evaluation(NLL, UNCLEAR))
        assert first == "tuned is better than base: held-out NLL per token is lower by 0.4 nats (0.3 to 0.5)."
        assert more == "No clear difference in coverage of 4."
        assert basis.startswith(
            "Measured on 40 held-out prompts and 4 samples of each model for each. Intervals are 95%"
        )

    def test_a_gain_and_a_loss_are_both_named(self) -> None:
        assert headline(evaluation(NLL, COVERAGE))[0] == (
            "tuned is better than base in some measures and worse in others: held-out NLL per token is lower by 0.4 "
            "nats (0.3 to 0.5), but coverage of 4 is lower by 0.1 (0.05 to 0.15)."
        )

    def test_a_loss(self) -> None:
        first, *_ = headline(evaluation(COVERAGE))
        assert first == "tuned is worse than base: coverage of 4 is lower by 0.1 (0.05 to 0.15)."

    def test_what_is_unclear_is_called_so(self) -> None:
        assert headline(evaluation(UNCLEAR))[0] == (
            "No clear difference between tuned and base on 40 prompts: coverage of 4 is higher by 0.02 (0.03 lower to "
            "0.07 higher)."
        )
        by_chance = difference("nll_per_token", -0.4, -0.5, -0.3, p=0.06)
        assert headline(evaluation(by_chance, UNCLEAR))[0].endswith(
            "(0.3 to 0.5), which chance gives among 2 comparisons."
        )
        few = replace(NLL, interval=None, p=None, outcome="unclear")
        data = CaseCounts("d", 3, 3, 3, 1, 1, 1, 0)
        first, basis = headline(evaluation(few, data=data))
        assert first.startswith("3 prompts are too few to tell tuned from base: ")
        assert basis.endswith("too few for intervals.")

    def test_what_is_different_is_neither_better_nor_worse(self) -> None:
        first, *_ = headline(evaluation(difference("diversity", 0.2, 0.1, 0.3)))
        assert first == (
            "tuned is different from base, and neither better nor worse: diversity is higher by 0.2 (0.1 to 0.3)."
        )

    def test_the_judge_comes_first(self) -> None:
        judged = WinRate(
            "tuned", "base", 40, 40, 0, 0, 28, 4, 8, 0.75, [0.6, 0.86], None, None, None, None, None, None, None, None,
            None, 0.0, 0.0, "better",
        )  # fmt: skip
        found = evaluation(NLL, judged=[judged])
        assert "a judge prefers its samples in 75.0% of pairs (60.0% to 86.0%)" in headline(found)[0]
        assert (strips(found)[0].value, strips(found)[0].interval) == (25, (10, 36))

    def test_lost_ability_is_in_the_headline_and_gained_ability_is_a_gain(self) -> None:
        first, *_ = headline(evaluation(NLL, forgetting=[lost(12.3, 10.1, 14.5, "significant")]))
        assert first.endswith("(0.3 to 0.5); but tuned lost 12 points on the general probe (10 to 14).")
        first, more, _ = headline(evaluation(NLL, forgetting=[lost(-3.9, -5.8, -2.0, "kept")]))
        assert "lost" not in first
        assert "3.9 points gained (2 to 5.8)" in more

    def test_of_several_models_the_best_has_the_headline(self) -> None:
        more = difference("nll_per_token", -0.6, -0.7, -0.5, model="other")
        found = evaluation(NLL, more, models=("base", "tuned", "other"))
        first, *rest = headline(found)
        assert first.startswith("other is better than base: held-out NLL per token is lower by 0.6")
        assert any(line.startswith("tuned is better than base") for line in rest)
        assert "Each model is compared with base, not with the others." in rest
        assert [row.verdict for row in strips(found)] == ["tuned better", "other better"]
        assert len({row.reach for row in strips(found)}) == 1

    def test_one_model_is_compared_with_nothing(self) -> None:
        first, _ = headline(evaluation(models=("base",)))
        assert first == "base alone, on 40 prompts: held-out NLL per token is 2 nats (1.5 to 2.5)."


class TestDirection:
    @pytest.mark.parametrize(
        ("row", "side"),
        [
            (NLL, 1),
            (COVERAGE, -1),
            (difference("nll_per_token", 0.2, 0.1, 0.3), -1),
            (difference("coverage", 0.2, 0.1, 0.3), 1),
        ],
    )
    def test_better_is_right(self, row: Difference, side: int) -> None:
        (strip,) = strips(evaluation(row))
        assert strip.interval is not None
        assert strip.value * side > 0
        assert strip.interval[0] <= strip.value <= strip.interval[1]
        assert strip.verdict == ("better" if side > 0 else "worse")

    @pytest.mark.parametrize(
        ("points", "ends", "verdict", "look", "said"),
        [
            (-3.9, (-5.8, -2.0), "kept", "better", "3.9 points gained (2 to 5.8)"),
            (0.3, (-0.4, 1.0), "kept", "unclear", "0.3 points lost (0.4 gained to 1 lost)"),
            (6.0, (4.0, 8.0), "significant", "worse", "6 points lost (4 to 8)"),
            (3.0, (-1.0, 7.0), "flagged", "unclear", "3 points lost (1 gained to 7 lost)"),
        ],
    )
    def test_gains_are_right_and_never_negative_losses(
        self, points: float, ends: tuple[float, float], verdict: str, look: str, said: str
    ) -> None:
        row = lost(points, *ends, verdict)
        (strip,) = strips(evaluation(forgetting=[row]))
        assert (strip.value, strip.look, strip.said) == (-points, look, said)
        assert strip.interval == (-ends[1], -ends[0])
        cells = " ".join(forgetting_rows(row)[1][0])
        assert "-" not in cells.replace("general probe, nats per token", "")

    @pytest.mark.parametrize(
        ("value", "ends", "said"),
        [
            (0.0, [0.0, 0.0], "the same"),
            (-0.5, None, "lower by 0.5"),
            (-0.5, [-0.75, -0.25], "lower by 0.5 (0.25 to 0.75)"),
            (0.25, [0.0, 0.5], "higher by 0.25 (0 to 0.5)"),
            (0.25, [-0.5, 1.0], "higher by 0.25 (0.5 lower to 1 higher)"),
        ],
    )
    def test_words_of_a_change(self, value: float, ends: Interval, said: str) -> None:
        assert change_text(value, ends) == said

    def test_words_of_points(self) -> None:
        assert points_text(None) == points_interval(None) == ""
        assert points_text(0.0, [0.0, 0.0]) == "no points lost"
        assert points_text(1234.0) == "1,234 points lost"


class TestNext:
    def options(self, found: Evaluation) -> list[str]:
        return shlex.split(next_step(found).command)

    def test_the_paths_are_those_of_the_evaluation(self) -> None:
        usual = "mrt evaluate --model base=a/base --model 'tuned=a/base+runs/my run' --data 'held out.jsonl' --m 4"
        report = " --report evaluation.html"
        found = evaluation(NLL, difference("coverage", 0.2, 0.1, 0.3))
        assert next_step(found).command == f"{usual}{report} --embedder sentence-transformers"
        meant = replace(found, how={**HOW, "embedder": "sentence-transformers"})
        ends = " --embedder sentence-transformers --report evaluation.html --seed 1 --output evaluation_seed1"
        assert next_step(meant).command == usual + ends
        forgot = replace(found, forgetting=[lost(6.0, 4.0, 8.0, "significant")])
        assert next_step(forgot).command == usual + report
        assert "lost general ability" in next_step(forgot).why
        served = replace(found, how={**HOW, "endpoint": "http://h/v1"})
        assert "--endpoint http://h/v1" in next_step(served).command

    def test_fewer_kinds_of_answers_ask_for_a_plan(self) -> None:
        assert self.options(evaluation(COVERAGE)) == (
            ["mrt", "plan", "held out.jsonl", "--model", "a/base", "--report", "plan.html"]
        )

    def test_an_adapter_alone_is_compared_with_its_own_base(self) -> None:
        line = self.options(evaluation(models=("tuned",), baseline="tuned"))
        assert line[:6] == ["mrt", "evaluate", "--model", "a/base", "--model", "tuned=a/base+runs/my run"]

    def test_the_page_ends_with_it(self) -> None:
        outputs = [
            Outputs("p", "Name a fruit.", ["A pear."], 0, {"base": [Sample("apple")], "tuned": [Sample("pear", True)]})
        ]
        page = evaluation_report(evaluation(NLL, outputs=outputs))
        assert page.index("tuned is better than base") < page.index('class="strip better"') < page.index("<section>")
        assert page.index("pear [cut off]") < page.index("<summary>References") < page.index("A pear.")
        assert page.index("A pear.") < page.index("<summary>Every measure") < page.index('<div class="next">')
