"""Show a plan as an HTML page. Every number on a plot is read from the plan's JSON."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mrt_plugin.report import Report, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = {"shared_prefix": ("o", "-", "black"), "expanded": ("s", "--", "0.45")}
"""Marker, line style and shade of each layout, so that plots are readable without colour."""


def plan_report(plan: dict[str, Any]) -> str:
    """Build the HTML page of a plan from `make_plan`."""
    report = Report(f"How many responses to keep: {plan['data']['name']}")
    report.text(plan["advice"][0], lead=True)
    if len(plan["advice"]) > 1:
        report.list(plan["advice"][1:])
    if plan["model"] is not None:
        _model(report, plan)
    report.heading("The data")
    report.table(("", ""), data_rows(plan))
    report.heading("What this cannot know")
    report.list(plan["cannot_know"])
    return report.html()


def _model(report: Report, plan: dict[str, Any]) -> None:
    found = plan["model"]
    report.heading("For the recipe")
    report.code(plan["yaml"])
    report.heading("Where the variance comes from")
    report.table(("", "estimate", f"{found['level']:.0%} interval"), variance_rows(found))
    report.figure(spread_figure(plan), "One mark per prompt: its mean loss, and the variance between its responses.")
    report.heading("What each K buys for the same cost")
    report.figure(
        choices_figure(plan),
        "Predicted variance of the loss estimate. Where a line rises, the prompts given up cost more than the "
        "responses bring.",
    )
    best = found["best"]["k"]
    shared, expanded = found["choices"]["shared_prefix"], found["choices"]["expanded"]
    report.table(
        ("K", "prompts, prompt shared", "variance", "prompts, prompt copied", "variance"),
        [
            (
                str(one["k"]),
                f"{one['prompts']:,}",
                number(one["variance"]),
                f"{two['prompts']:,}",
                number(two["variance"]),
            )
            for one, two in zip(shared, expanded, strict=True)
        ],
        marked=[best - 1],
    )
    report.heading("With more to spend")
    report.figure(outlook_figure(plan), "The best K by budget, with its interval.")
    report.table(OUTLOOK_COLUMNS, outlook_rows(found))
    adaptive = found["adaptive"]
    if adaptive is not None:
        counts = np.bincount(list(adaptive["allocation"].values()))
        report.heading("Adaptive allocation")
        report.text(
            f"The same {adaptive['total']:,} responses (mean K = {adaptive['mean_k']}), more of them where losses "
            "vary more. Responses' part of the variance, cross-fitted: "
            f"{number(adaptive['response_variance_ratio'])} of that of a fixed K. "
            f"{adaptive['at_lower_limit']:,} prompts are at the lower limit of 1, "
            f"{adaptive['at_upper_limit']:,} at the size of their pool."
        )
        report.table(("K", "prompts"), [(str(k), f"{count:,}") for k, count in enumerate(counts) if count])


def data_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Build the table rows that describe the data without a model."""
    data, found = plan["data"], plan["diversity"]
    prompt, near = found["prompt"], found["redundancy"]
    rows = [
        ("prompts", f"{data['prompts']:,}"),
        ("responses", f"{data['responses']:,}"),
        ("of them repeated within their pool", f"{data['repeated_responses']:,}"),
        ("pool: least, median, most", f"{data['pool_least']}, {data['pool_median']:g}, {data['pool_most']}"),
        (
            f"prompt diversity d = r·n^p ({prompt['order']}-grams of {found['tokens']}, p = {prompt['p']:g})",
            f"{prompt['d']:.3f}  (r = {prompt['r']:.3f})",
        ),
    ]
    if near is not None:
        rows.append(("prompt redundancy: mean cosine to the nearest other prompt", f"{near['nearest']:.3f}"))
        rows.append((f"prompts with another at {near['near']:g} or nearer", f"{near['share']:.1%}"))
    if found["response_diversity"] is not None:
        rows.append(("response diversity: 1 - mean cosine in a pool", f"{found['response_diversity']:.3f}"))
        last = found["effective_k"][-1]
        rows.append((f"k_eff of K = {last['k']} (a heuristic)", f"{last['k_eff']:.1f}"))
    rows.append(("embedder", found["embedder"]))
    return rows


def variance_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Build the table rows of the variance components."""
    rows = [
        ("V_x, between prompts", found["v_x"], found["v_x_interval"]),
        ("V_{y|x}, between responses to a prompt", found["v_yx"], found["v_yx_interval"]),
        ("rho, correlation of two responses to a prompt", found["rho"], found["rho_interval"]),
        ("k*, the formula's best K", found["k_star"], found["k_star_interval"]),
    ]
    table = [
        (name, number(value), "" if ends is None else f"{number(ends[0])} to {number(ends[1])}")
        for name, value, ends in rows
    ]
    costs = found["costs"]
    table.append(("C_p, tokens of a prompt" if found["cost_unit"] == "tokens" else "C_p", number(costs["prompt"]), ""))
    table.append(
        ("C_r, tokens of a response" if found["cost_unit"] == "tokens" else "C_r", number(costs["response"]), "")
    )
    return table


OUTLOOK_COLUMNS = ("budget, in ordinary epochs", "K", "interval", "prompts", "variance")


def outlook_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Build the table rows of the best K by budget."""
    return [
        (
            f"{row['times']}x",
            str(row["k"]),
            "" if row["k_interval"] is None else f"{row['k_interval'][0]} to {row['k_interval'][1]}",
            f"{row['prompts']:,}",
            number(row["variance"]),
        )
        for row in found["outlook"]
    ]


def number(value: float | None) -> str:
    """Format a number with three digits; None means infinity."""
    return "∞" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def choices_figure(plan: dict[str, Any]) -> "Figure":
    """Plot the predicted variance against K at equal cost, in both layouts."""
    found = plan["model"]
    made, (axis,) = figure()
    names = {"shared_prefix": "prompt computed once (shared_prefix)", "expanded": "prompt copied (expanded)"}
    for name, rows in found["choices"].items():
        known = [row for row in rows if row["variance"] is not None]
        marker, line, shade = LINES[name]
        axis.plot(
            [row["k"] for row in known],
            [row["variance"] for row in known],
            marker=marker,
            linestyle=line,
            color=shade,
            label=names[name],
        )
    best = found["best"]
    axis.plot(
        best["k"],
        best["variance"],
        "*",
        markersize=18,
        markerfacecolor="white",
        markeredgecolor="black",
        label=f"best: K = {best['k']}",
        zorder=3,
    )
    axis.set_xlabel("K, responses per prompt")
    axis.set_ylabel("predicted variance")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    return made


def outlook_figure(plan: dict[str, Any]) -> "Figure":
    """Plot the best K against the budget."""
    rows = plan["model"]["outlook"]
    made, (axis,) = figure(height=3)
    ks = [row["k"] for row in rows]
    ends = [row["k_interval"] or (row["k"], row["k"]) for row in rows]
    low = [max(0, k - end) for k, (end, _) in zip(ks, ends, strict=True)]
    high = [max(0, end - k) for k, (_, end) in zip(ks, ends, strict=True)]
    places = range(len(rows))
    axis.errorbar(places, ks, yerr=[low, high], marker="o", linestyle="none", color="black", capsize=5)
    axis.set_xticks(places, [f"{row['times']}x" for row in rows])
    axis.set_xlabel("budget, in ordinary epochs (every prompt with one response)")
    axis.set_ylabel("best K")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_ylim(bottom=0)
    axis.margins(x=0.15)
    return made


def spread_figure(plan: dict[str, Any]) -> "Figure":
    """Plot the variance of each prompt's losses against their mean."""
    found = plan["model"]
    made, (axis,) = figure(height=3.5)
    rows = [row for row in found["per_prompt"] if row["variance"] is not None]
    axis.plot(
        [row["mean"] for row in rows],
        [row["variance"] for row in rows],
        "o",
        markersize=4,
        color="black",
        markerfacecolor="none",
        alpha=0.7,
    )
    axis.axhline(found["v_yx"], linestyle="--", color="black", linewidth=1)
    axis.annotate("V_{y|x}", (1, found["v_yx"]), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axis.set_xlabel(f"mean loss of a prompt's responses ({found['loss_aggregation']} aggregation)")
    axis.set_ylabel("variance between them")
    return made
