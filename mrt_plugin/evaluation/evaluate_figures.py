"""Plot an evaluation. Every number on a plot is read from the evaluation's JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mrt_plugin.evaluation.measures import MEASURES, ends_of, label, points_of
from mrt_plugin.report import figure, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = (("o", "-", "black"), ("s", "--", "0.4"), ("^", "-.", "0.2"), ("D", ":", "0.5"), ("v", "-", "0.6"))
"""Marker, line style and shade of each model, in order, so that plots are readable without colour."""


def curves_figure(result: dict[str, Any], names: Sequence[str]) -> "Figure":
    """Plot the measures that depend on M, the number of samples, with one axis each."""
    made, axes = figure(width=4.2 * len(names) if len(names) > 1 else 6, height=3.6, columns=len(names))
    for axis, name in zip(axes, names, strict=True):
        for place, model in enumerate(result["models"]):
            points = points_of(model, name)
            if not points:
                continue
            marker, line, shade = STYLES[place % len(STYLES)]
            middle = [point["value"] for point in points]
            ends = [point["interval"] or [point["value"]] * 2 for point in points]
            axis.errorbar(
                [point["m"] * 1.05 ** (place - (len(result["models"]) - 1) / 2) for point in points],  # side by side
                middle,
                yerr=[
                    [max(0, value - low) for value, (low, _) in zip(middle, ends, strict=True)],
                    [max(0, high - value) for value, (_, high) in zip(middle, ends, strict=True)],
                ],
                marker=marker,
                linestyle=line,
                color=shade,
                markerfacecolor="white" if place % 2 else shade,
                capsize=3,
                label=shown(model["name"]),
            )
        ticks = sorted({point["m"] for model in result["models"] for point in points_of(model, name)})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("M, samples per prompt")
        axis.set_ylabel(MEASURES[name].label)
        if name == "pass":
            axis.set_ylim(-0.03, 1.03)
    axes[0].legend(frameon=False)
    return made


def difference_figure(result: dict[str, Any]) -> "Figure":
    """Plot every difference with its interval, scaled to fit one axis."""
    others = [model["name"] for model in result["models"] if model["name"] != result["baseline"]]
    rows = [
        row
        for row in result["differences"]
        if row["scaled"] is not None and row["m"] in (None, *ends_of(result, row["measure"]))
    ]
    keys = list(dict.fromkeys((row["measure"], row["m"]) for row in rows))
    made, (axis,) = figure(width=7, height=1.2 + 0.32 * len(keys) * max(1, len(others)))
    for row in rows:
        turn = others.index(row["model"])
        place = keys.index((row["measure"], row["m"])) + (turn - (len(others) - 1) / 2) * 0.8 / len(others)
        low, middle, high = row["scaled"]
        marker, _, shade = STYLES[(turn + 1) % len(STYLES)]
        axis.errorbar(
            middle,
            place,
            xerr=[[max(0, middle - low)], [max(0, high - middle)]],
            marker=marker,
            linestyle="none",
            color=shade,
            markerfacecolor="white" if row["outcome"] == "unclear" else shade,
            capsize=3,
            label=shown(row["model"]),
        )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(keys)), [_pointed(name, m) for name, m in keys])
    axis.set_ylim(len(keys) - 0.5, -0.5)
    axis.set_xlabel("difference, in half intervals (filled: beyond chance)")
    if len(others) > 1:
        handles, names = axis.get_legend_handles_labels()
        first = {name: handle for handle, name in reversed(list(zip(handles, names, strict=True)))}
        there = [name for name in map(shown, others) if name in first]
        axis.legend([first[name] for name in there], there)
    return made


def forgetting_figure(rows: Sequence[dict[str, Any]], points: dict[str, float]) -> "Figure":
    """Plot the points lost by kind of text, with the two thresholds."""
    kinds = [part["kind"] for part in rows[0]["probe"]]
    made, (axis,) = figure(height=3.4)
    for turn, row in enumerate(rows):
        marker, _, shade = STYLES[turn % len(STYLES)]
        places = [place + (turn - (len(rows) - 1) / 2) * 0.6 / len(rows) for place in range(len(kinds))]
        middle = [part["points"] for part in row["probe"]]
        ends = [part["interval"] or [part["points"]] * 2 for part in row["probe"]]
        axis.errorbar(
            places,
            middle,
            yerr=[
                [max(0, value - low) for value, (low, _) in zip(middle, ends, strict=True)],
                [max(0, high - value) for value, (_, high) in zip(middle, ends, strict=True)],
            ],
            marker=marker,
            linestyle="none",
            color=shade,
            markerfacecolor="white" if turn % 2 else shade,
            capsize=3,
            label=shown(row["model"]),
        )
    axis.axhline(0, color="black", linewidth=0.8)
    for name, line in (("flagged", ":"), ("significant", "--")):
        axis.axhline(points[name], color="0.4", linewidth=0.8, linestyle=line)
        axis.annotate(name, (1, points[name]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_xlim(-0.5, len(kinds) + 0.2)  # room for the labels of the lines
    axis.set_ylabel("points lost")
    if len(rows) > 1:
        axis.legend(frameon=False)
    return made


def _pointed(name: str, m: int | None) -> str:
    arrow = {"higher": " (right is better)", "lower": " (left is better)", "neither": ""}[MEASURES[name].better]
    return label(name, m) + arrow
