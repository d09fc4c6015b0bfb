"""Prompts against responses at equal annotations: the design and the tables of arXiv 2403.11124.

A budget of A scored responses buys A/K prompts with K responses each. Scores are set against the number of prompts,
and against the prompts' diversity d = r·n^p.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from datasets import Dataset
from scipy.stats import sem

from mrt_plugin.curation import curate, parse_rules
from mrt_plugin.groups.messages import prompt_text
from mrt_plugin.planning.diversity import (
    DiversityFit,
    PromptDiversity,
    Tokenize,
    fit_diversity,
    prompt_diversity,
    words,
)
from mrt_plugin.planning.fit import UNTRAINED, last_held_out_loss, read_lines
from mrt_plugin.planning.grid import Grid, GridRun, batch_of, describe
from mrt_plugin.planning.progress import quiet

Duration = Literal["epochs", "steps"]
DURATIONS: tuple[Duration, ...] = get_args(Duration)
ORDERS = (1, 2, 3, 4)
"""The n-gram orders that are recorded."""
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The exponents p that are compared. The authors take 0.5."""

NOT_A_RUN = (
    "is not a run of this design: it needs annotations, k, prompts and ngrams, as `mrt grid --annotations` writes, "
    "and a finite `score` or `loss`."
)


def make_scaling(
    pool_sizes: Sequence[int],
    annotations: Sequence[int],
    *,
    ks: Sequence[int] = (2, 3, 4),
    durations: Sequence[Duration] = ("epochs",),
    recipe: dict[str, Any] | None = None,
    combinations: Sequence[dict[str, Any]] = ({},),
) -> Grid:
    """Build the settings of n = A // K prompts for each budget A and K.

    `epochs` leaves the recipe's epochs, so that fewer prompts train for fewer steps. `steps` gives all runs the steps
    of the setting with most prompts.

    Raises:
        ValueError: if a pool has fewer responses than the largest K, a budget is below one prompt, or fewer than two
            settings are left.
    """
    owned, most = len(pool_sizes), max(ks)
    short = sum(size < most for size in pool_sizes)
    if short:
        what = f"{short:,} of {owned:,} prompts have fewer than {most} responses"
        raise ValueError(f"{what}, and each must count the same: leave them out, sample more, or give smaller K.")
    settings: list[GridRun] = []
    left_out = []
    sizes = [(budget, k, budget // k) for budget in sorted(set(annotations)) for k in sorted(set(ks))]
    fitting = [(budget, k, n) for budget, k, n in sizes if 1 <= n <= owned]
    for budget, k, n in sizes:
        if n < 1:
            raise ValueError(f"{budget} annotations do not pay for one prompt with {k} responses.")
        if n > owned:
            left_out.append(f"{budget:,} annotations, K = {k}: it takes {n:,} prompts, and there are {owned:,}.")
    if len(fitting) < 2:
        raise ValueError(f"Fewer than two settings are left. {' '.join(left_out)}")
    steps = None
    if "steps" in durations:
        if recipe is None:
            raise ValueError("Equal steps need a --recipe, which they are written into.")
        epochs, largest = float(recipe.get("num_epochs") or 1), max(n for _, _, n in fitting)
        steps = math.ceil(epochs * math.ceil(largest / batch_of(recipe)))
    for duration in durations:
        for options in combinations:
            for budget, k, n in fitting:
                fixed = steps if duration == "steps" else None
                settings.append(GridRun(f"equal {duration}", k, n, n * k, None, options, budget, fixed))
    return Grid(settings, left_out)


def subset(groups: Dataset, rule: dict[str, Any], seed: int) -> Dataset:
    """Return the groups that a run's rule draws, as its training does. Larger draws of a seed include smaller ones."""
    with quiet():
        return curate(groups, parse_rules([rule]), seed=seed).groups


def count_ngrams(groups: Dataset, tokenize: Tokenize = words) -> dict[str, list[int]]:
    """Return the distinct and all n-grams of the prompts, by order. Orders that no prompt is long enough for are left
    out."""
    texts = [prompt_text(prompt) for prompt in groups["prompt"]]
    found = {}
    for order in ORDERS:
        try:
            one = prompt_diversity(texts, tokenize=tokenize, order=order)
        except ValueError:
            continue
        found[str(order)] = [one.distinct, one.total]
    return found


@dataclass(frozen=True)
class ScalingRun:
    """One finished run. `score` is the line's own, or its held-out loss."""

    arm: str
    annotations: int
    k: int
    prompts: int
    score: float
    ngrams: dict[int, tuple[int, int]]

    def diversity(self, order: int, p: float) -> PromptDiversity:
        distinct, total = self.ngrams[order]
        r = distinct / total
        return PromptDiversity(r * self.prompts**p, r, self.prompts, order, p, distinct, total)


@dataclass(frozen=True)
class ScalingCell:
    arm: str
    annotations: int
    k: int
    prompts: int
    runs: int
    score: float
    error: float | None
    """Standard error; None for one run."""
    d: float | None
    """With bigrams and p = 0.5, as the authors; None for prompts without bigrams."""


@dataclass(frozen=True)
class ScalingFit:
    """The line score = slope·r·n^p + intercept over runs of one arm: of one K, or of all (None)."""

    arm: str
    k: int | None
    order: int
    p: float
    searched: bool
    """Whether p is that of the smallest error, instead of a given one."""
    slope: float
    intercept: float
    mse: float
    r_squared: float | None
    runs: int


@dataclass(frozen=True)
class ScalingResult:
    measure: Literal["score", "loss"]
    cells: list[ScalingCell]
    fits: list[ScalingFit]
    missing: list[str]


def read_scaling(path: Path) -> tuple[list[ScalingRun], Literal["score", "loss"], list[str]]:
    """Read the runs of a listing, what they are measured by, and the names of the unfinished ones.

    The measure is `score` if any line has one, else the held-out `loss`, or the last one that the trainer saved.
    """
    scores = [score for _, _, score in read_lines(path, lambda row: row.get("score"), NOT_A_RUN)]
    measure: Literal["score", "loss"] = "loss" if all(score is None for score in scores) else "score"

    def read(row: dict[str, Any]) -> ScalingRun | str:
        value = row.get(measure)
        if value is None and measure == "loss" and row.get("output_dir") is not None:
            value = last_held_out_loss(Path(row["output_dir"]))
        ngrams = {int(order): (int(counts[0]), int(counts[1])) for order, counts in row["ngrams"].items()}
        arm = describe(row.get("options") or {}, str(row["arm"]))
        found = ScalingRun(arm, int(row["annotations"]), int(row["k"]), int(row["prompts"]), float(value or 0), ngrams)
        if not math.isfinite(found.score) or found.k < 1 or found.prompts < 1:
            raise ValueError(NOT_A_RUN)
        return str(row.get("recipe") or "") if value is None else found

    lines = read_lines(path, read, NOT_A_RUN)
    missing = [run or f"line {number}" for number, _, run in lines if isinstance(run, str)]
    return [run for _, _, run in lines if isinstance(run, ScalingRun)], measure, missing


def is_scaling(path: Path) -> bool:
    """Return whether a listing is of this design."""
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    try:
        return "annotations" in json.loads(first)
    except (ValueError, TypeError):
        return False


def scaling_result(path: Path) -> ScalingResult:
    """Summarise the runs of a listing: the table by number of prompts, and the fits of score on diversity.

    Raises:
        DataError: for a line that is no run.
        ValueError: if no run is finished.
    """
    runs, measure, missing = read_scaling(path)
    if not runs:
        shown = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
        raise ValueError(f"{path}: no run has a result yet ({shown}). {UNTRAINED}, or write each one's `score`.")
    return ScalingResult(measure, scaling_cells(runs), scaling_fits(runs), missing)


def scaling_cells(runs: Sequence[ScalingRun]) -> list[ScalingCell]:
    """Return mean and standard error of each setting."""
    found: dict[tuple[str, int, int, int], list[ScalingRun]] = {}
    for run in runs:
        found.setdefault((run.arm, run.annotations, run.k, run.prompts), []).append(run)
    cells = []
    for key, members in found.items():
        scores = [run.score for run in members]
        spread = [run.diversity(2, 0.5).d for run in members if 2 in run.ngrams]
        error = float(sem(scores)) if len(scores) > 1 else None
        d = float(np.mean(spread)) if spread else None
        cells.append(ScalingCell(*key, runs=len(scores), score=float(np.mean(scores)), error=error, d=d))
    return cells


def scaling_fits(runs: Sequence[ScalingRun], powers: Sequence[float] = POWERS) -> list[ScalingFit]:
    """Fit score on d for every arm, each K and all K, n-gram order and p, and with the best p in [0, 2].

    A fit needs three runs with at least two values of d.
    """
    fits = []
    for arm in dict.fromkeys(run.arm for run in runs):
        own = [run for run in runs if run.arm == arm]
        ks = sorted({run.k for run in own})
        for k in [*ks, *([None] if len(ks) > 1 else [])]:
            members = [run for run in own if k is None or run.k == k]
            for order in ORDERS:
                if len(members) < 3 or any(order not in run.ngrams for run in members):
                    continue
                sets = [run.diversity(order, 0.5) for run in members]
                scores = [run.score for run in members]
                if len({(one.r, one.prompts) for one in sets}) < 2:
                    continue
                for searched, tried in ((False, [(p,) for p in powers]), (True, [tuple(np.arange(41) / 20)])):
                    for some in tried:
                        if all(len({one.r * one.prompts**p for one in sets}) > 1 for p in some):
                            fit = fit_diversity(sets, scores, powers=some)
                            fits.append(_fit(arm, k, order, searched, fit, scores))
    return fits


def _fit(
    arm: str, k: int | None, order: int, searched: bool, fit: DiversityFit, scores: Sequence[float]
) -> ScalingFit:
    spread = float(np.var(scores))
    r_squared = 1 - fit.mse / spread if spread > 0 else None
    return ScalingFit(arm, k, order, fit.p, searched, fit.slope, fit.intercept, fit.mse, r_squared, len(scores))
