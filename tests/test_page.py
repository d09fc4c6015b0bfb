"""Figures: names that users give are shown as they are."""

import pytest

from mrt_plugin.evaluation.evaluate_figures import curves_figure, forgetting_figure
from mrt_plugin.report import svg

NAMES = (r"$\frac$", "_hidden", "plain")


@pytest.mark.filterwarnings("error:No artists with labels")
def test_names_with_signs_of_matplotlib_are_shown() -> None:
    rows = [{"model": name, "probe": [{"kind": "code", "points": 1.0, "interval": None}]} for name in NAMES]
    found = svg(forgetting_figure(rows, {"flagged": 1.0, "significant": 2.0}))
    assert all(f">{name}<" in found.replace("> ", ">") for name in NAMES)
    point = {"measure": "coverage", "m": 1, "value": 0.5, "interval": None}
    models = [{"name": name, "measures": [point]} for name in NAMES[:2]]
    found = svg(curves_figure({"models": models}, ["coverage"]))
    assert all(f">{name}<" in found.replace("> ", ">") for name in NAMES[:2])
