"""Figures: names that users give are shown as they are."""

import pytest

from mrt_plugin.evaluation.evaluate_report import curves_figure, forgetting_figure
from mrt_plugin.evaluation.result import Forgetting, ModelResult, ProbeChange, Value
from mrt_plugin.report import svg

NAMES = (r"$\frac$", "_hidden", "plain")


@pytest.mark.filterwarnings("error:No artists with labels")
def test_names_with_signs_of_matplotlib_are_shown() -> None:
    rows = [Forgetting(name, "base", [ProbeChange("code", 1, 2.0, 2.0, 1.0, None, "kept")], []) for name in NAMES]
    found = svg(forgetting_figure(rows, {"flagged": 1.0, "significant": 2.0}))
    assert all(f">{name}<" in found.replace("> ", ">") for name in NAMES)
    point = Value("coverage", 1, 0.5, None, 4)
    models = [ModelResult(name, None, None, None, None, [point]) for name in NAMES[:2]]
    found = svg(curves_figure(models, ["coverage"]))
    assert all(f">{name}<" in found.replace("> ", ">") for name in NAMES[:2])
