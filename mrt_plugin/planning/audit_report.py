"""Show an audit: as warnings and notes, as tables and as an HTML page."""

from collections.abc import Sequence
from typing import Any

from mrt_plugin.planning.audit import Audit, GradientAudit, SplitAudit
from mrt_plugin.planning.paired import FEWEST
from mrt_plugin.planning.plan_report import interval_text, number
from mrt_plugin.planning.variance import Interval
from mrt_plugin.report import Report, figure, shown

COLUMNS = ("", "the selection", "random_k", "90% interval of the difference")
CALM = "Nothing here sets this selection apart from random_k for the worse."


def warnings(audit: Audit) -> list[str]:
    """Warn if the selection clearly differs from its pool."""
    lines = []
    gradient, splits, loss, length, coverage = audit.gradient, audit.splits, audit.loss, audit.length, audit.coverage
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
    if loss is not None and loss.emse_difference_interval is not None and loss.emse_difference_interval.low > 0:
        errors = f"mean squared error {loss.emse:.3g} against {loss.random_k_emse:.3g}"
        lines.append(f"The loss of the kept responses estimates their pool's worse than random_k would: {errors}.")
    low, high = length.random_k_interval
    if not low <= length.kept <= high:
        side = "longer" if length.ratio > 1 else "shorter"
        lines.append(
            f"The model will learn another length: the kept responses are {abs(length.ratio - 1):.0%} {side} than "
            f"their pools' ({length.kept:.0f} {length.unit}, not {length.pool:.0f}; random_k {low:.0f} to {high:.0f})."
        )
    if _below_zero(coverage.difference_interval):
        shares = f"{coverage.clusters_covered:.0%} of their pools' clusters, random_k {coverage.random_k:.0%}"
        lines.append(f"The kept responses cover {shares}: kinds of answers are missing.")
    return lines


def _below_zero(interval: Interval | None) -> bool:
    return interval is not None and interval.high < 0


def notes(audit: Audit) -> list[str]:
    groups = audit.groups
    lines = ["The pool stands for the truth: what it lacks, an audit cannot miss."]
    if groups.audited < FEWEST:
        lines.append(f"Fewer than {FEWEST} prompts have no intervals, and warnings that rest on one are not given.")
    if groups.kept_whole:
        lines.append(f"{groups.kept_whole:,} pools were kept whole and are left out here.")
    if not audit.with_model:
        lines.append("Without --model nothing is said about loss and gradient.")
    elif audit.splits is None and audit.selector is None:
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
    first, *rest = warnings(audit) or [CALM]
    report.text(first, lead=True)
    if rest:
        report.list(rest)
    groups, splits = audit.groups, audit.splits
    ks = f"{groups.k_least}" if groups.k_least == groups.k_most else f"{groups.k_least} to {groups.k_most}"
    report.text(f"{groups.audited:,} pools of {groups.pool_median:g} responses (median), {ks} kept of each.")
    report.heading("The selection beside random_k")
    report.table(COLUMNS, audit_rows(audit))
    if splits is not None:
        report.heading("The selector on halves of the pools")
        report.text(
            f"{splits.selector} was run again on a random half of each pool, {splits.splits} times over "
            f"{splits.prompts:,} prompts. bias² is its mean error, squared; variance is its scatter."
        )
        report.table(("", splits.selector, "random_k"), split_rows(splits))
        _splits_figure(report, splits)
    if audit.gradient is not None:
        report.heading("Prompt by prompt")
        _gradient_figure(report, audit.gradient)
    report.heading("What this rests on")
    report.list(notes(audit))
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
