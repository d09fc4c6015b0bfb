"""Run the seven controlled experiments of arXiv 2606.00544, and write their results to a folder."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrt_plugin.groups.write import whole_file, write_text
from mrt_plugin.planning.progress import Progress, counting
from mrt_plugin.report import Report
from mrt_plugin.simulation import experiments, figures
from mrt_plugin.simulation.published import COLUMNS, compare
from mrt_plugin.simulation.tokens import tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Experiment:
    """One experiment: how to run it and how to show it."""

    title: str
    steps: int
    """Number of progress reports. An experiment with one step does not report progress itself."""
    run: Callable[..., dict[str, Any]]
    draw: Callable[[dict[str, Any]], "Figure"]
    caption: str


EXPERIMENTS = {
    "variance": Experiment(
        "variance of the loss estimate against K",
        1,
        experiments.variance,
        figures.variance,
        "Marks: measured over repeats. Line: V_x/n + V_{y|x}/(n·K) with the true components. The broken line is the "
        "limit of many responses.",
    ),
    "budget": Experiment(
        "one budget, prompts or responses",
        7,
        experiments.budget,
        figures.budget,
        "Left: NLL after all steps and at each network's best step (random_k). Middle: how often each K is best in "
        "bootstrap draws of the repeats. Right: the variance that k* minimises.",
    ),
    "lottery": Experiment(
        "the mode lottery",
        4,
        experiments.lottery,
        figures.lottery,
        "Each mark is one run, trained on its own random K of 32 answers per prompt; the bar is the mean. Left: NLL, "
        "logarithmic. Right: the share of probability on the wrong mode.",
    ),
    "by_selector": Experiment(
        "learning a distribution, by selector",
        5,
        experiments.by_selector,
        figures.by_selector,
        "Left: NLL on fresh answers, logarithmic. Right: the share of probability on the wrong mode.",
    ),
    "gradients": Experiment(
        "bias, variance and gradient direction",
        1,
        experiments.gradients,
        figures.gradients,
        "Left: squared bias (grey) and variance (hatched) of the per-prompt loss. Right: cosine with the true "
        "gradient. Crosses: published.",
    ),
    "bridge": Experiment(
        "similar answers, similar gradients",
        1,
        experiments.bridge,
        figures.bridge,
        "Left: pairs of answers to one prompt; the line joins bin means. Right: the heuristic number of different "
        "answers kept.",
    ),
    "tokens": Experiment(
        "a transformer on discrete tokens, by this package's trainer",
        40,
        tokens,
        figures.tokens,
        "Left: KL from the true modes to the model's on new prompts. Right: which modes each selection kept at the "
        "second and the last K.",
    ),
}


def run_experiments(
    names: Sequence[str],
    *,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
    publish: Callable[[dict[str, Any]], object] = lambda results: None,
) -> dict[str, Any]:
    """Run experiments by name, and return their numbers and the comparison with the published figures.

    `publish` is called after each experiment with the results so far, so that a stopped run keeps them.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise ValueError(f"Experiment {name!r} is unknown: choose from {', '.join(EXPERIMENTS)}.")
    found: dict[str, Any] = {}
    results: dict[str, Any] = {"seed": seed, "experiments": found, "published": []}
    for name in names:
        one, started = EXPERIMENTS[name], time.perf_counter()
        advance = counting(progress, one.title, one.steps)
        advance(0)
        if one.steps > 1:
            found[name] = one.run(seed, progress=advance)
        else:
            found[name] = one.run(seed)
            advance(1)
        found[name]["seconds"] = time.perf_counter() - started
        results["published"] = compare(found)
        publish(results)
    return results


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write `results.json`, `report.html` and `<experiment>.png` into `folder`, each atomically."""
    page = Report("Controlled experiments of arXiv 2606.00544")
    page.text(
        "Small worlds in which the truth is known: every figure here was computed anew, by this package's selectors "
        "and, in the last experiment, its trainer.",
        lead=True,
    )
    page.heading("Published figures beside ours")
    page.table(COLUMNS, [[row[name] for name in COLUMNS] for row in results["published"]], text_columns=(0, 1, 4))
    for name, found in results["experiments"].items():
        picture = EXPERIMENTS[name].draw(found)
        with whole_file(folder / f"{name}.png") as file:
            picture.savefig(file, dpi=110, format="png")
        page.heading(EXPERIMENTS[name].title)
        page.figure(picture, EXPERIMENTS[name].caption)
    page.text(f"Seed {results['seed']}. All numbers of the pictures are in results.json.")
    write_text(folder / "results.json", json.dumps(results, indent=1, allow_nan=False))
    write_text(folder / "report.html", page.html())
