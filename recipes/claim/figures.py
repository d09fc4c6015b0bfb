"""Draw the figures of the page from its numbers. Series differ by marker and line, not by colour."""

from typing import TYPE_CHECKING, Any

from mrt_plugin.report import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[str, dict[str, Any]] = {
    "k1": {"marker": "o", "linestyle": "-", "color": "black"},
    "k2": {"marker": "s", "linestyle": "--", "color": "0.45", "markerfacecolor": "white"},
    "k4": {"marker": "^", "linestyle": "-.", "color": "0.3"},
    "k8": {"marker": "D", "linestyle": ":", "color": "black", "markerfacecolor": "white"},
    "k1_epochs": {"marker": "x", "linestyle": "--", "color": "0.6"},
    "k1_redraw": {"marker": "+", "linestyle": "-", "color": "0.6"},
    "k8_scattered": {"marker": "v", "linestyle": ":", "color": "0.5"},
}
LABELS = {
    "k1": "K = 1, more prompts",
    "k2": "K = 2",
    "k4": "K = 4",
    "k8": "K = 8",
    "k1_epochs": "K = 1, more epochs",
    "k1_redraw": "K = 1, redrawn",
    "k8_scattered": "K = 8, shuffled",
}
LAYOUTS = {"shared_prefix": "shared prefix", "expanded": "expanded"}


def cost_curves(found: dict[str, Any], layout: str) -> "Figure":
    """Plot KL against cost, with one panel per prompt length. The cost of K = 1 on n prompts is 1."""
    lengths = list(found["lengths"])
    made, axes = figure(4.2 * len(lengths), 4.6, columns=len(lengths))
    for axis, length in zip(axes, lengths, strict=True):
        curves = found["lengths"][length]["curves"][layout]
        unit = curves["k1"][0]["cost"]
        for arm, points in curves.items():
            axis.plot(
                [p["cost"] / unit for p in points], [p["value"] for p in points], label=LABELS[arm], **STYLE[arm]
            )
        _doubling(axis)
        axis.set_title(f"P = {length}, {LAYOUTS[layout]}", fontsize=10)
        axis.set_xlabel("cost (K = 1 on n prompts is 1)")
    axes[0].set_ylabel("KL(truth || model), nats")
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return made


def _doubling(axis: Any) -> None:
    """Make the axis logarithmic, with plain numbers."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")


def gain_by_budget(found: dict[str, Any]) -> "Figure":
    """Plot the relative gain over K = 1 with more prompts at equal cost, against the prompts with K responses."""
    lengths = list(found["lengths"])
    made, axes = figure(4.2 * len(lengths), 4.6, columns=len(lengths))
    for axis, length in zip(axes, lengths, strict=True):
        for layout, shade in (("shared_prefix", "black"), ("expanded", "0.6")):
            for arm in ("k2", "k4", "k8"):
                points = found["lengths"][length]["by_budget"][layout][arm]
                style = {**STYLE[arm], "color": shade}
                prompts = [p["prompts"] for p in points]
                axis.errorbar(
                    prompts,
                    [100 * p["value"] for p in points],
                    yerr=[
                        [100 * (p["value"] - p["low"]) for p in points],
                        [100 * (p["high"] - p["value"]) for p in points],
                    ],
                    capsize=3,
                    label=f"{LABELS[arm]}, {LAYOUTS[layout]}",
                    **style,
                )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.axhline(5, color="black", linewidth=0.6, linestyle=(0, (1, 3)))
        _doubling(axis)
        axis.set_title(f"P = {length}", fontsize=10)
        axis.set_xlabel("prompts with K responses (n = 1)")
    axes[0].set_ylabel("KL saved at equal cost, %")
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return made


def grouping(found: list[dict[str, Any]]) -> "Figure":
    """Plot the variance ratio of a step's gradient, grouped over scattered, as measured against 1 + (K-1)·rho."""
    made, (axis,) = figure(5, 4)
    for stage, marker in (("base model", "o"), ("trained", "s")):
        rows = [ratio for row in found if row["stage"] == stage for ratio in row["ratios"]]
        axis.plot(
            [row["predicted"] for row in rows],
            [row["measured"] for row in rows],
            marker,
            color="black",
            markerfacecolor="white" if stage == "trained" else "black",
            label=stage,
        )
    top = max(row["measured"] for entry in found for row in entry["ratios"]) * 1.05
    axis.plot([1, top], [1, top], color="0.5", linewidth=0.8)
    axis.set_xlabel("1 + (K - 1)·rho, rho from other prompts")
    axis.set_ylabel("variance of a step, grouped / scattered")
    axis.legend(frameon=False)
    return made
