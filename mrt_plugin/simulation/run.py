"""Run the seven controlled experiments of arXiv 2606.00544, compare them with its figures, and write the results."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from shlex import quote
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from mrt_plugin.groups.write import whole_file, write_text
from mrt_plugin.planning.progress import Progress
from mrt_plugin.report import NextStep, Report, legible
from mrt_plugin.simulation import experiments, figures, takeaways
from mrt_plugin.simulation.results import (
    BudgetFound,
    Comparison,
    Finished,
    Found,
    GradientsFound,
    SimulationResults,
    VarianceFound,
)
from mrt_plugin.simulation.tokens import tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = tuple(field.name for field in fields(Comparison))


@dataclass(frozen=True)
class Experiment:
    title: str
    run: Callable[..., Found]
    draw: Callable[[Any], Any]
    takeaway: Callable[[Any], str]
    caption: str


LEAD = "lottery"
"""The experiment that a page of several begins with."""

EXPERIMENTS = {
    "variance": Experiment(
        "variance of the loss estimate against K",
        experiments.variance,
        figures.variance,
        takeaways.variance,
        "Marks: measured. Line: V_x/n + V_{y|x}/(n·K) with the true components. Broken: the limit of many responses.",
    ),
    "budget": Experiment(
        "one budget, prompts or responses",
        experiments.budget,
        figures.budget,
        takeaways.budget,
        "Left: NLL. Middle: how often each K is best in bootstrap draws of the repeats. Right: what k* minimises.",
    ),
    "lottery": Experiment(
        "the mode lottery",
        experiments.lottery,
        figures.lottery,
        takeaways.lottery,
        "Mark: a run on its own random K of 32 answers. Bar: mean. Left: NLL. Right: probability on the wrong mode.",
    ),
    "by_selector": Experiment(
        "learning a distribution, by selector",
        experiments.by_selector,
        figures.by_selector,
        takeaways.by_selector,
        "Left: NLL on fresh answers, logarithmic. Right: the share of probability on the wrong mode.",
    ),
    "gradients": Experiment(
        "bias, variance and gradient direction",
        experiments.gradients,
        figures.gradients,
        takeaways.gradients,
        "Left: bias² (grey) and variance (hatched) of the loss. Right: cosine with the true gradient. x: published.",
    ),
    "bridge": Experiment(
        "similar answers, similar gradients",
        experiments.bridge,
        figures.bridge,
        takeaways.bridge,
        "Left: pairs of answers to one prompt; the line joins bin means. Right: the heuristic k_eff of those kept.",
    ),
    "tokens": Experiment(
        "a transformer on discrete tokens, by this package's trainer",
        tokens,
        figures.tokens,
        takeaways.tokens,
        "Left: KL from the true modes to the model's on new prompts. Right: modes kept at the second and last K.",
    ),
}


def run_experiments(
    names: Sequence[str],
    *,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
    publish: Callable[[SimulationResults], object] = lambda results: None,
) -> SimulationResults:
    """Run experiments by name, and return their numbers and the comparison with the published figures.

    `publish` gets the results so far after each experiment.
    """
    for name in names:
        if name not in EXPERIMENTS:
            guess = "".join(f" Did you mean {near}?" for near in get_close_matches(name, EXPERIMENTS, n=1))
            raise ValueError(f"Experiment {name!r} is unknown.{guess} There are {', '.join(EXPERIMENTS)}.")
    results = SimulationResults(seed, {}, [])
    for name in names:
        one, started = EXPERIMENTS[name], time.perf_counter()
        progress(one.title, 0, 1)
        found = one.run(seed, progress=partial(progress, one.title))
        finished = {**results.experiments, name: Finished(found, time.perf_counter() - started)}
        results = SimulationResults(seed, finished, compare({name: one.found for name, one in finished.items()}))
        publish(results)
    return results


@legible()
def draw(name: str, found: Found, title: str | None = None) -> "Figure":
    made: Figure = EXPERIMENTS[name].draw(found)
    if title is not None:
        made.suptitle(fill(title, int(9.5 * made.get_figwidth())), fontsize=13)
    return made


def say_takeaways(results: SimulationResults) -> dict[str, str]:
    """Return what each experiment found, in one sentence each. The first is the headline."""
    names = sorted(results.experiments, key=lambda name: name != LEAD)
    return {name: EXPERIMENTS[name].takeaway(results.experiments[name].found) for name in names}


def next_step(results: SimulationResults, folder: Path) -> NextStep:
    only = "" if set(results.experiments) == set(EXPERIMENTS) else f" --only {','.join(results.experiments)}"
    other = f"{str(folder).removesuffix(f'_seed{results.seed}')}_seed{results.seed + 1}"
    command = f"mrt simulate{only} --seed {results.seed + 1} --output {quote(other)}"
    return NextStep("see how far these figures move with another seed", command)


def write_report(results: SimulationResults, folder: Path) -> None:
    """Write `results.json`, `report.html` and `<experiment>.png` into `folder`, each atomically."""
    page = Report("Controlled experiments of arXiv 2606.00544")
    lead = "Small worlds in which the truth is known, with this package's selectors and, in the last one, its trainer."
    for number, (name, takeaway) in enumerate(say_takeaways(results).items()):
        found = results.experiments[name].found
        with whole_file(folder / f"{name}.png") as file:
            draw(name, found, takeaway).savefig(file, dpi=110, format="png")
        if number == 0:
            page.headline(takeaway, lead)
        else:
            page.heading(takeaway)
        page.figure(draw(name, found), f"{name}: {EXPERIMENTS[name].title}. {EXPERIMENTS[name].caption}")
    if results.published:
        with page.folded("Published figures beside ours, and why some differ"):
            page.table(COLUMNS, [astuple(row) for row in results.published], text_columns=(0, 1, 4))
    page.text(f"Seed {results.seed}. All numbers of the pictures are in results.json.")
    page.next_step(next_step(results, folder))
    write_text(folder / "results.json", json.dumps(results.as_json(), indent=1, allow_nan=False))
    write_text(folder / "report.html", page.html())


def compare(results: Mapping[str, Found]) -> list[Comparison]:
    """Build the table of published figures and ours, for those experiments that repeat published figures."""
    makers: dict[str, Callable[[Any], Iterator[Comparison]]]
    makers = {"variance": _variance, "budget": _budget, "gradients": _gradients}
    return [row for name, make in makers.items() if name in results for row in make(results[name])]


def _variance(found: VarianceFound) -> Iterator[Comparison]:
    for place, k, published in ((0, 1, "0.0675"), (5, 32, "0.0138")):
        yield Comparison(
            "variance against K",
            f"variance of the loss estimate at K = {k}",
            published,
            f"{found.variance[place]:.4f} ± {found.variance_error[place]:.4f}",
            f"The exact value is {found.predicted[place]:.4f}. With the authors' 100 repeats, the error is 14 %.",
        )


def _budget(found: BudgetFound) -> Iterator[Comparison]:
    ks, shares = found.k, found.last.best_k["random_k"]
    likely = [str(k) for k, share in zip(ks, shares, strict=True) if share >= 0.05]
    early, late = (np.mean(at.nll["random_k"], axis=1) for at in (found.best, found.last))
    measured = found.components
    off_x, off_yx = measured.v_x_error_of_300_prompts, measured.v_yx_error_of_300_prompts
    noise = "Ours is over 20,000 prompts; a sample of 300 has a standard error of"
    yield Comparison("budget", "V_x", "0.187", f"{measured.v_x:.3f}", f"{noise} {off_x:.3f}.")
    yield Comparison("budget", "V_{y|x}", "1.33", f"{measured.v_yx:.2f}", f"{noise} {off_yx:.2f}.")
    yield Comparison("budget", "k*", "5.33", f"{found.k_star:.2f}", "Follows from the two above.")
    yield Comparison(
        "budget",
        "best K by test NLL, random_k",
        "8 to 12",
        f"{ks[int(late.argmin())]} ({', '.join(likely)} in resamples)",
        "k* minimises the variance of the loss estimate at one fixed network, which is not test NLL. After "
        f"{found.steps} steps every network has overfitted (mean NLL {late.min():.0f} to {late.max():.0f}, at its "
        f"best step {early.min():.2f} to {early.max():.2f}). Few pairs ({found.pairs[0]} at K = 1, "
        f"{found.pairs[-1]} at K = {ks[-1]}) overfit most, which favours a larger K. From K = 4 up NLL is flat.",
    )


def _gradients(found: GradientsFound) -> Iterator[Comparison]:
    own = {
        "random_k": " The published sum holds a bias² of 0.029, which is noise: random_k has none.",
        "diverse_best_k": " The paper's facility location keeps what best_k keeps here: the middle mode has all the "
        "reward and covers the rest. The published GRADES figures are those of filter_then_spread.",
    }
    for name, ours in found.selectors.items():
        known = ours.published
        noise = (
            "The published mean of 30 trials has a standard error of about 0.02."
            if name in ("random_k", "filter_then_spread")
            else "Our true gradient is integrated, not sampled."
        )
        cosine = f"{ours.cosine:.3f} ± {ours.cosine_error:.1g}"
        for quantity, published, value, (low, high), remark in (
            ("EMSE", known and known.emse, f"{ours.emse:.3f}", ours.emse_other_networks, own.get(name, "")),
            ("gradient cosine", known and known.cosine, cosine, ours.cosine_other_networks, f" {noise}"),
        ):
            others = f"Other untrained networks: {low:.2f} to {high:.2f}."
            texts = ("none" if published is None else f"{published:.3f}", value, others)
            shown = [text.replace("-", "−") for text in texts]
            yield Comparison("gradients, K = 4", f"{quantity}, {name}", shown[0], shown[1], shown[2] + remark)
