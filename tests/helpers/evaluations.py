"""Results of `evaluate`, made by hand."""

from dataclasses import replace
from typing import Any

from mrt_plugin.evaluation.result import (
    CaseCounts,
    Difference,
    Evaluation,
    Forgetting,
    ModelResult,
    ProbeChange,
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
    "truth": None,
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
JUDGED = WinRate(
    "tuned", "base", 40, 40, 0, 0, 28, 4, 8, 0.75, [0.6, 0.86], None, None, None, None, None, None, None, None,
    None, 0.0, 0.0, "better",
)  # fmt: skip
