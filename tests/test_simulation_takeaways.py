"""The sentence on each picture of `mrt simulate` follows from the numbers, also where a claim does not hold."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.page import check_page

from mrt_plugin.planning.budget import Costs
from mrt_plugin.simulation import takeaways
from mrt_plugin.simulation.results import (
    AtStep,
    BridgeFound,
    BudgetFound,
    BySelectorFound,
    Comparison,
    Components,
    Finished,
    GradientsFound,
    Line,
    LotteryFound,
    OneDataset,
    SelectorGradients,
    SimulationResults,
    TokensFound,
    VarianceFound,
)
from mrt_plugin.simulation.run import EXPERIMENTS, draw, next_step, say_takeaways, write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VARIANCE = VarianceFound(
    prompts=100,
    repeats=2000,
    v_x=1.0,
    v_yx=6.0,
    k=(1, 2, 4),
    variance=[0.0702, 0.0399, 0.0251],
    variance_error=[0.001, 0.001, 0.001],
    predicted=[0.07, 0.04, 0.025],
    fit=Line(0.01, 0.06, 1.0),
    one_dataset=OneDataset(1.0, (0.8, 1.2), 6.0, (5.0, 7.0)),
)
LOTTERY = LotteryFound(
    k=(1, 8),
    prompts=120,
    pool=32,
    runs=20,
    steps=400,
    nll=[[60.0, 72.0], [6.0, 6.5]],
    nll_mean=[66.0, 6.25],
    nll_sd=[30.0, 2.0],
    mode_error=[[0.48, 0.49], [0.14, 0.15]],
    mode_error_mean=[0.485, 0.145],
    mode_error_sd=[0.02, 0.02],
)


def at_step(nll: list[float], shares: list[float]) -> AtStep:
    return AtStep({"random_k": shares}, {"random_k": [[value - 0.1, value + 0.1] for value in nll]})


BUDGET = BudgetFound(
    costs=Costs(4, 1),
    budget=400,
    repeats=2,
    steps=400,
    components=Components(0.17, 1.44, 0.03, 0.07),
    k_star=5.83,
    integer_best_k=6,
    rows=[],
    k=(1, 2, 6),
    prompts=[80, 66, 40],
    pairs=[80, 132, 240],
    last=at_step([80.0, 60.0, 24.0], [0.0, 0.1, 0.9]),
    best=at_step([1.83, 1.81, 1.78], [0.0, 0.1, 0.9]),
)
SELECTED = BySelectorFound(
    k=(1, 16),
    prompts=150,
    pool=32,
    repeats=3,
    steps=400,
    nll={"random_k": [[48.0] * 3, [0.43, 0.44, 0.45]], "best_k": [[150.0] * 3, [2.8, 2.9, 2.7]]},
    nll_mean={"random_k": [48.0, 0.44], "best_k": [150.0, 2.8]},
    mode_error_mean={"random_k": [0.49, 0.076], "best_k": [0.64, 0.332]},
)


def direction(cosine: float, error: float = 0.005) -> SelectorGradients:
    return SelectorGradients(0.0, 0.1, 0.1, cosine, error, None, (0.1, 0.2), (-0.26, 0.08))


GRADIENTS = GradientsFound(400, 8, 4, 32, 30, {"random_k": direction(0.66), "best_k": direction(-0.12)})
BRIDGE = BridgeFound(50, 16, 6000, 0.79, 0.98, -0.38, [], [[0.0, 0.1]], (2,), {"random_k": [1.3]})
TOKENS = TokensFound(
    k=(1, 2),
    prompts=200,
    pool=32,
    repeats=2,
    steps=100,
    pairs_per_step=64,
    generated=(0.95, 0.04, 0.01),
    mode_kl={"random_k": [[1.3, 1.5], [1.5, 1.6]], "best_k": [[6.0] * 2] * 2, "diverse_k": [[5.8] * 2, [0.30, 0.36]]},
    mode_kl_mean={"random_k": [1.4, 1.55], "best_k": [6.0, 6.0], "diverse_k": [5.8, 0.33]},
    nll_mean={},
    kept_modes={},
)


def test_variance() -> None:
    said = "The formula predicts the variance at every K: with K = 4 it is 36% of that with K = 1."
    assert takeaways.variance(VARIANCE) == said
    missed = takeaways.variance(replace(VARIANCE, predicted=[0.07, 0.0435, 0.0215]))
    assert missed == "The formula misses the measured variance at K = 2, 4, by over 3 standard errors."


def test_budget() -> None:
    said = takeaways.budget(BUDGET)
    assert said.startswith(
        "At equal cost, several answers to fewer prompts beat one answer to each: NLL is lowest at K"
    )
    assert said.endswith("K = 6, and k* is 5.8.")
    early = at_step([1.83, 1.70, 1.78], [0.0, 0.9, 0.1])
    assert "K = 6 after all steps, at K = 2 at the best step" in takeaways.budget(replace(BUDGET, best=early))
    unclear = at_step([1.83, 1.81, 1.78], [0.2, 0.1, 0.7])
    assert "is not clearly beaten (best in 20% of resamples)" in takeaways.budget(replace(BUDGET, best=unclear))
    first = at_step([1.0, 1.81, 1.78], [1.0, 0.0, 0.0])
    assert "is not clearly beaten" in takeaways.budget(replace(BUDGET, last=first))


@pytest.mark.parametrize(
    ("spread", "said"), [([30.0, 2.0], "15 times as much"), ([2.2, 2.0], "about as much"), ([1.0, 4.0], "less")]
)
def test_lottery(spread: list[float], said: str) -> None:
    found = takeaways.lottery(replace(LOTTERY, nll_sd=spread))
    first = "With one random answer per prompt, 48% of the probability is on the wrong mode; with 8, 14%."
    assert found == f"{first} Runs with one differ {said} in NLL."


def test_by_selector() -> None:
    said = takeaways.by_selector(SELECTED)
    assert said.startswith("At K = 16, random_k learns the truth best: 8% of its probability is on the wrong mode")
    assert "the others 33% or more" in said
    level = {**SELECTED.nll, "best_k": [[150.0] * 3, [0.40, 0.47, 0.46]]}
    assert "no selector learns the truth clearly best" in takeaways.by_selector(replace(SELECTED, nll=level))
    other = {"random_k": [0.49, 0.4], "best_k": [0.64, 0.3]}
    assert "no selector" in takeaways.by_selector(replace(SELECTED, mode_error_mean=other))


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (direction(-0.12), "goes against the true gradient (cosine −0.12, with random answers 0.66; on other"),
        (direction(-0.12, 0.1), "follows the true gradient less than random answers do"),
        (direction(0.3), "follows the true gradient less than random answers do"),
        (direction(0.65), "follows the true gradient no less than random answers do"),
    ],
)
def test_gradients(best: SelectorGradients, said: str) -> None:
    found = replace(GRADIENTS, selectors={**GRADIENTS.selectors, "best_k": best})
    assert said in takeaways.gradients(found)
    assert takeaways.gradients(found).endswith("; on other networks −0.26 to 0.08).")


def test_bridge() -> None:
    said = "Similar answers have similar gradients: cosine 0.98 within a mode, −0.38 between modes (correlation 0.79)."
    assert takeaways.bridge(BRIDGE) == said
    for other in (replace(BRIDGE, correlation=-0.1), replace(BRIDGE, cosine_same_mode=-0.5)):
        assert takeaways.bridge(other).startswith("Similar answers need not have similar gradients")


def test_tokens() -> None:
    said = "diverse_k comes closest to the truth (KL 0.33 at K = 2; random_k reaches 1.40; best_k reaches 6.00)."
    assert takeaways.tokens(TOKENS) == said
    level = {**TOKENS.mode_kl, "random_k": [[0.35, 1.5], [1.5, 1.6]]}
    assert takeaways.tokens(replace(TOKENS, mode_kl=level)).startswith("random_k and diverse_k come closest")


def test_a_picture_has_its_takeaway_as_the_title_and_its_legend_clear_of_the_axes() -> None:
    more = {name: direction(0.1) for name in ("diverse_best_k", "filter_then_spread")}
    gradients = replace(GRADIENTS, selectors=GRADIENTS.selectors | more)
    for name, found in {"variance": VARIANCE, "by_selector": SELECTED, "gradients": gradients}.items():
        said = EXPERIMENTS[name].takeaway(found)
        made = draw(name, found, said)
        made.draw_without_rendering()
        assert made.get_suptitle().replace("\n", " ") == said
        (legend,) = made.legends
        boxes = [made._suptitle.get_window_extent(), legend.get_window_extent()]  # type: ignore[attr-defined]
        for axis in made.axes:
            assert axis.get_legend() is None
            assert not any(box.overlaps(axis.get_window_extent()) for box in boxes)
        assert all(made.bbox.x0 <= box.x0 and box.x1 <= made.bbox.x1 for box in boxes)


def test_the_page_begins_with_the_lottery_and_ends_with_another_seed(tmp_path: Path) -> None:
    found = {"variance": VARIANCE, "lottery": LOTTERY}
    results = SimulationResults(3, {name: Finished(one, 1.0) for name, one in found.items()}, [])
    assert list(say_takeaways(results)) == ["lottery", "variance"]
    write_report(results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    headline, other = takeaways.lottery(LOTTERY), takeaways.variance(VARIANCE)
    assert f'<p class="headline">{headline}</p>' in page
    assert f"<h2>{other}</h2>" in page
    command = next_step(results, tmp_path).command
    assert command == f"mrt simulate --only variance,lottery --seed 4 --output {tmp_path}_seed4"
    assert command in re.sub(r" \\\n +", " ", page[page.rindex("<svg") :])


def test_the_page_in_chromium(chromium: "Browser", tmp_path: Path) -> None:
    found = {"variance": VARIANCE, "lottery": LOTTERY, "tokens": TOKENS}
    rows = [Comparison("variance against K", "variance at K = 1", "0.0675", "0.0702 ± 0.001", "A remark. " * 20)]
    write_report(SimulationResults(0, {name: Finished(one, 1.0) for name, one in found.items()}, rows), tmp_path)
    page = (tmp_path / "report.html").read_text()
    check_page(chromium, page, takeaways.lottery(LOTTERY), pictures_fit_a_phone=False)
