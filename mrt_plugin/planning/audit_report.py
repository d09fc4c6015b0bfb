"""Show an audit: as a sentence, as tables and as an HTML page."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrt_plugin.planning.audit import Audit, GradientAudit, SplitAudit
from mrt_plugin.planning.paired import FEWEST
from mrt_plugin.planning.plan_report import interval_text, number
from mrt_plugin.planning.variance import Interval
from mrt_plugin.report import NextStep, Report, Strip, figure, shown

COLUMNS = ("", "the selection", "random_k", "90% interval of the difference")
STRIPS = (
    "Each row has its own scale, with what random_k keeps in the middle. A line is a 90% interval over prompts, the "
    "grey field holds 90% of random selections. A filled mark lies beyond chance."
)


def headline(audit: Audit) -> tuple[str, ...]:
    """Return the largest tilt in one sentence, or that there is none, followed by the others and how it was judged."""
    groups = audit.groups
    ks = f"{groups.k_least}" if groups.k_least == groups.k_most else f"{groups.k_least} to {groups.k_most}"
    first, *rest = warnings(audit) or [_no_tilt(audit)]
    how = f"Judged on {groups.audited:,} pools of {groups.pool_median:g} responses (median) with {ks} kept of each"
    without = "" if audit.with_model else " Loss and gradient were not measured: no model was given."
    return first, *rest, f"{how}, against random_k at the same K, by 90% intervals.{without}"


def _no_tilt(audit: Audit) -> str:
    length, coverage = audit.length, audit.coverage
    lengths = f"kept answers have {number(length.kept)} {length.unit}, their pools' {number(length.pool)}"
    if audit.groups.audited < FEWEST:
        return f"{audit.groups.audited} prompts are too few to find a tilt: {lengths}."
    loss = ", and loss and gradient are no worse than random_k's" if audit.loss is not None else ""
    return (
        f"No tilt was found in {audit.name}: {lengths} (by chance {interval_text(length.random_k_interval)}); they "
        f"cover {coverage.clusters_covered:.0%} of the kinds of answers (random_k {coverage.random_k:.0%}){loss}."
    )


def warnings(audit: Audit) -> list[str]:
    """Say in what the selection clearly differs from its pool: the largest tilt first, then loss and gradient."""
    gradient, splits, loss = audit.gradient, audit.splits, audit.loss
    lines = _tilts(audit)
    if loss is not None and loss.emse_difference_interval is not None and loss.emse_difference_interval.low > 0:
        errors = f"mean squared error {loss.emse:.3g} against {loss.random_k_emse:.3g}"
        lines.append(f"The loss of the kept answers estimates their pool's worse than random_k would: {errors}.")
    if gradient is not None:
        cosines = f"the mean gradient cosine is {gradient.cosine:.2f}, that of random_k {gradient.random_k_cosine:.2f}"
        if _below_zero(gradient.cosine_interval):
            lines.append(f"The selection points away from its pool: {cosines}. Training on it unlearns some of that.")
        elif _below_zero(gradient.difference_interval):
            lines.append(f"The selection points less along its pool's gradient than random_k: {cosines}.")
    if splits is not None and _below_zero(splits.selection.cosine_interval):
        lines.append(
            f"On halves of the pools, what {splits.selector} keeps points away from the responses it did not see: "
            f"cosine {splits.selection.cosine:.2f}, random_k {splits.random_k.cosine:.2f}."
        )
    return lines


def _tilts(audit: Audit) -> list[str]:
    """Say how the kept answers differ in length and kinds, relative to their pools the largest first."""
    length, coverage, found = audit.length, audit.coverage, []
    low, high = length.random_k_interval
    by_chance = interval_text(length.random_k_interval)
    if not low <= length.kept <= high:
        side = "longer" if length.ratio > 1 else "shorter"
        what = f"{number(length.kept)} {length.unit}, not {number(length.pool)} (by chance {by_chance})"
        size = abs(length.ratio - 1)
        found.append((size, f"Kept answers are {size:.0%} {side} than their pools': {what}."))
    if _below_zero(coverage.difference_interval):
        size = 1 - coverage.clusters_covered / coverage.random_k
        shares = f"{coverage.clusters_covered:.0%} of their pools' clusters, random_k {coverage.random_k:.0%}"
        found.append((size, f"Kept answers lack kinds of answers: they cover {shares}."))
    return [text for _, text in sorted(found, reverse=True)]


def _below_zero(interval: Interval | None) -> bool:
    return interval is not None and interval.high < 0


def strips(audit: Audit) -> list[Strip]:
    """Return what sets the selection apart from random_k, each on its own scale."""
    length, coverage, loss, gradient = audit.length, audit.coverage, audit.loss, audit.gradient
    low, high = length.random_k_interval
    usual, share = (low - length.pool, high - length.pool), coverage.clusters_covered - coverage.random_k
    verdict, look = "as by chance", "unclear"
    if not low <= length.kept <= high:
        verdict, look = ("longer" if length.ratio > 1 else "shorter"), "clear"
    by_chance = interval_text(length.random_k_interval)
    said = f"{number(length.kept)} {length.unit}, pools {number(length.pool)} (by chance {by_chance})"
    gap, ends = length.kept - length.pool, ("shorter", "longer")
    rows = [Strip("length", said, gap, None, verdict, look, ends=ends, usual=usual)]
    said = f"{coverage.clusters_covered:.1%} of clusters, random_k {coverage.random_k:.1%}"
    rows.append(
        _strip("kinds of answers", said, share, coverage.difference_interval, ("fewer", "more"), " points", 100)
    )
    if loss is not None:
        gap, error = loss.kept_minus_pool, loss.random_k_emse - loss.emse
        said = f"{number(abs(gap))} {'above' if gap > 0 else 'below'} their pool's"
        ends = "easier for the model", "harder"
        rows.append(_strip("loss", said, gap, loss.kept_minus_pool_interval, ends))
        said, found = f"EMSE {number(loss.emse)}, random_k {number(loss.random_k_emse)}", loss.emse_difference_interval
        turned = None if found is None else Interval(-found.high, -found.low)
        rows.append(_strip("error of the prompt's loss", said, error, turned, ("worse", "better")))
    if gradient is not None:
        said = f"cosine with the pool {gradient.cosine:.3f}, random_k {gradient.random_k_cosine:.3f}"
        gap = gradient.cosine - gradient.random_k_cosine
        rows.append(_strip("gradient", said, gap, gradient.difference_interval, ("worse", "better")))
    return rows


def _strip(
    name: str,
    said: str,
    value: float,
    interval: Interval | None,
    ends: tuple[str, str],
    unit: str = "",
    scale: float = 1.0,
) -> Strip:
    """Return a strip whose verdict is the end that its interval lies at."""
    verdict, look, scaled = "as by chance", "unclear", None
    if interval is not None:
        scaled = scale * interval.low, scale * interval.high
        if not interval.low <= 0 <= interval.high:
            verdict = ends[interval.low > 0]
            look = verdict if verdict in ("better", "worse") else "clear"
    return Strip(name, said, scale * value, scaled, verdict, look, ends=ends, unit=unit)


def next_step(audit: Audit) -> NextStep:
    """Return what to do next, with the paths of this audit."""
    if warnings(audit):
        path = Path(audit.name)
        fair = path.with_name(f"{path.stem}_random_k.jsonl")
        line = ["mrt", "select", audit.pool, "--selector", "random_k", "--k", str(audit.groups.k_most)]
        line += ["--seed", "1"] if audit.selector == "random_k" else []
        why = "keep this tilt only if you want it. Select by chance too, train on both, and compare them"
        return NextStep(why, shlex.join([*line, "--output", str(fair)]))
    if not audit.with_model:
        why = "audit loss and gradient too, with the model that you will train, whose path replaces MODEL"
        return NextStep(why, shlex.join(["mrt", "audit", audit.name, "--pool", audit.pool, "--model", "MODEL"]))
    why = "train on it. Write a recipe, in which type: mrt_plugin.axolotl.all takes every kept answer"
    return NextStep(why, shlex.join(["mrt", "init", "--data", audit.name]))


def notes(audit: Audit) -> list[str]:
    groups = audit.groups
    lines = ["The pool stands for the truth: what it lacks, an audit cannot miss."]
    if groups.audited < FEWEST:
        lines.append(f"Fewer than {FEWEST} prompts have no intervals, and warnings that rest on one are not given.")
    if groups.kept_whole:
        lines.append(f"{groups.kept_whole:,} pools were kept whole and are left out here.")
    if not audit.with_model:
        return lines
    if audit.splits is None and audit.selector is None:
        lines.append("One selection does not show bias and variance separately: give --selector, or a manifest.")
    elif audit.splits is None:
        lines.append("The selector was not run on halves: pools hold fewer than K + 3 responses, or lack scores.")
    return lines


def audit_rows(audit: Audit) -> list[tuple[str, ...]]:
    length, coverage, loss, gradient = audit.length, audit.coverage, audit.loss, audit.gradient
    low, high = length.random_k_interval
    shares = f"{coverage.clusters_covered:.1%}", f"{coverage.random_k:.1%}"
    means = f"{length.kept:.1f}", f"{length.pool:.1f}"
    rows: list[tuple[str, ...]] = [
        (f"mean length, {length.unit}", *means, f"random: {low:.1f} to {high:.1f}"),
        ("clusters covered", *shares, interval_text(coverage.difference_interval)),
    ]
    if loss is not None:
        gap, error = interval_text(loss.kept_minus_pool_interval), interval_text(loss.emse_difference_interval)
        rows.append(("loss of the kept minus their pool's", number(loss.kept_minus_pool), "0", gap))
        rows.append(("EMSE of the prompt's loss", number(loss.emse), number(loss.random_k_emse), error))
    if gradient is not None:
        cosines = f"{gradient.cosine:.3f}", f"{gradient.random_k_cosine:.3f}"
        rows.append(("gradient cosine with the pool", *cosines, interval_text(gradient.difference_interval)))
    return rows


def split_rows(splits: SplitAudit) -> list[tuple[str, ...]]:
    names = {
        "bias_squared": "bias²",
        "variance": "variance",
        "emse": "EMSE",
        "cosine": "gradient cosine with the rest",
    }
    both = (vars(splits.selection), vars(splits.random_k))
    return [(name, *(number(one[key]) for one in both)) for key, name in names.items() if both[0][key] is not None]


def audit_report(audit: Audit) -> str:
    """Build the HTML page of an audit from `make_audit`."""
    report = Report(f"Audit of {audit.name}")
    report.headline(*headline(audit))
    report.strips(strips(audit), STRIPS)
    report.heading("All numbers")
    with report.folded("The selection beside random_k"):
        report.table(COLUMNS, audit_rows(audit))
    splits = audit.splits
    if splits is not None:
        with report.folded("The selector on halves of the pools"):
            report.text(
                f"{splits.selector} was run again on a random half of each pool, {splits.splits} times over "
                f"{splits.prompts:,} prompts. bias² is its mean error, squared; variance is its scatter."
            )
            report.table(("", splits.selector, "random_k"), split_rows(splits))
            _splits_figure(report, splits)
    if audit.gradient is not None:
        with report.folded("Gradients, prompt by prompt"):
            _gradient_figure(report, audit.gradient)
    report.heading("What this rests on")
    report.list(notes(audit))
    report.next_step(next_step(audit))
    return report.html()


def stacked_error(axis: Any, rows: Sequence[tuple[float, float]]) -> None:
    """Draw a stacked bar for each pair of bias² and variance."""
    places, (biases, variances) = range(len(rows)), zip(*rows, strict=True)
    above = [max(bias, 0) for bias in biases]
    axis.bar(places, above, 0.7, color="0.6", edgecolor="black", label="bias²")
    axis.bar(places, variances, 0.7, above, color="white", edgecolor="black", hatch="//", label="variance")
    axis.legend(frameon=False)


def _splits_figure(report: Report, splits: SplitAudit) -> None:
    made, (axis,) = figure(4.5, 3.5)
    stacked_error(axis, [(one.bias_squared, one.variance) for one in (splits.selection, splits.random_k)])
    axis.set_xticks((0, 1), (shown(splits.selector), "random_k"))
    axis.set_ylabel("error of the prompt's loss")
    report.figure(made, "Bias² (grey) and variance (hatched) of the prompt's loss.")


def _gradient_figure(report: Report, gradient: GradientAudit) -> None:
    made, (axis,) = figure(5, 4)
    mine, usual = [row.cosine for row in gradient.per_prompt], [row.random_k for row in gradient.per_prompt]
    axis.plot(usual, mine, "o", color="black", markerfacecolor="none", markersize=4)
    low = min(0, *mine, *usual)
    axis.plot([low, 1], [low, 1], "--", color="0.4", linewidth=1)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="gradient cosine, random_k", ylabel="gradient cosine, the selection")
    where = "below the diagonal random_k is closer to the pool's gradient, below 0 the selection points away from it"
    report.figure(made, f"One mark per prompt: {where}.")
