"""Show an audit as tables and as an HTML page. Every number shown is read from the audit's JSON."""

from typing import TYPE_CHECKING, Any

from mrt_plugin.planning.plan_report import number
from mrt_plugin.report import Report, figure, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("", "the selection", "random_k", "90% interval of the difference")


def audit_rows(audit: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Build the table rows that compare the selection with `random_k`."""
    length, coverage, loss, gradient = audit["length"], audit["coverage"], audit["loss"], audit["gradient"]
    low, high = length["random_k_interval"]
    rows = [
        (
            f"mean length, {length['unit']}",
            f"{length['kept']:.1f}",
            f"{length['pool']:.1f}",
            f"random: {low:.1f} to {high:.1f}",
        ),
        (
            "clusters covered",
            f"{coverage['clusters_covered']:.1%}",
            f"{coverage['random_k']:.1%}",
            _interval(coverage["difference_interval"]),
        ),
    ]
    if loss is not None:
        rows += [
            (
                "loss of the kept minus their pool's",
                number(loss["kept_minus_pool"]),
                "0",
                _interval(loss["kept_minus_pool_interval"]),
            ),
            (
                "EMSE of the prompt's loss",
                number(loss["emse"]),
                number(loss["random_k_emse"]),
                _interval(loss["emse_difference_interval"]),
            ),
        ]
    if gradient is not None:
        rows.append(
            (
                "gradient cosine with the pool",
                f"{gradient['cosine']:.3f}",
                f"{gradient['random_k_cosine']:.3f}",
                _interval(gradient["difference_interval"]),
            )
        )
    return rows


def split_rows(splits: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Build the table rows that compare the selector with `random_k` on the same halves of the pools."""
    mine, usual = splits["selection"], splits["random_k"]
    rows = [
        (label, number(mine[key]), number(usual[key]))
        for key, label in (("bias_squared", "bias²"), ("variance", "variance"), ("emse", "EMSE"))
    ]
    if mine["cosine"] is not None:
        rows.append(("gradient cosine with the rest", f"{mine['cosine']:.3f}", f"{usual['cosine']:.3f}"))
    return rows


def audit_report(audit: dict[str, Any]) -> str:
    """Build the HTML page of an audit from `make_audit`."""
    report = Report(f"Audit of {audit['name']}")
    calm = "Nothing here sets this selection apart from random_k for the worse."
    report.text(audit["warnings"][0] if audit["warnings"] else calm, lead=True)
    if len(audit["warnings"]) > 1:
        report.list(audit["warnings"][1:])
    groups = audit["groups"]
    low, high = groups["k_least"], groups["k_most"]
    ks = f"{low}" if low == high else f"{low} to {high}"
    report.text(f"{groups['audited']:,} pools of {groups['pool_median']:g} responses (median), {ks} kept of each.")
    report.heading("The selection beside random_k")
    report.table(COLUMNS, audit_rows(audit))
    if audit["splits"] is not None:
        splits = audit["splits"]
        report.heading("The selector on halves of the pools")
        report.text(
            f"{splits['selector']} was run again on a random half of each pool, {splits['splits']} times over "
            f"{splits['prompts']:,} prompts. bias² is what its loss misses the pool's by on average, variance what it "
            "scatters by."
        )
        report.table(("", splits["selector"], "random_k"), split_rows(splits))
        report.figure(splits_figure(splits), "Bias² (grey) and variance (hatched) of the prompt's loss.")
    if audit["gradient"] is not None:
        report.heading("Prompt by prompt")
        report.figure(
            gradient_figure(audit["gradient"]),
            "One mark per prompt: below the diagonal random_k points closer to the pool's gradient, below the line at "
            "0 the selection points away from it.",
        )
    report.heading("What this rests on")
    report.list(audit["notes"])
    return report.html()


def splits_figure(splits: dict[str, Any]) -> "Figure":
    """Plot stacked bars of bias² and variance."""
    made, (axis,) = figure(4.5, 3.5)
    for place, key in enumerate(("selection", "random_k")):
        bias = max(splits[key]["bias_squared"], 0)
        axis.bar(place, bias, 0.6, color="0.6", edgecolor="black", label="bias²" if place == 0 else None)
        axis.bar(
            place,
            splits[key]["variance"],
            0.6,
            bottom=bias,
            color="white",
            edgecolor="black",
            hatch="//",
            label="variance" if place == 0 else None,
        )
    axis.set_xticks((0, 1), (shown(splits["selector"]), "random_k"))
    axis.set_ylabel("error of the prompt's loss")
    axis.legend(frameon=False)
    return made


def gradient_figure(gradient: dict[str, Any]) -> "Figure":
    """Plot each prompt's gradient cosine for the selection against that for random draws."""
    made, (axis,) = figure(5, 4)
    rows = gradient["per_prompt"]
    axis.plot(
        [row["random_k"] for row in rows],
        [row["cosine"] for row in rows],
        "o",
        color="black",
        markerfacecolor="none",
        markersize=4,
    )
    low = min(0, *(row["cosine"] for row in rows), *(row["random_k"] for row in rows))
    axis.plot([low, 1], [low, 1], "--", color="0.4", linewidth=1)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xlabel("gradient cosine, random_k")
    axis.set_ylabel("gradient cosine, the selection")
    return made


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"{number(ends[0])} to {number(ends[1])}"
