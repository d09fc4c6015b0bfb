"""Draw one figure per experiment from its numbers. Series differ by marker, line and hatch, not by colour."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mrt_plugin.planning.audit_report import stacked_error
from mrt_plugin.report import figure
from mrt_plugin.simulation.results import (
    BridgeFound,
    BudgetFound,
    BySelectorFound,
    GradientsFound,
    LotteryFound,
    TokensFound,
    VarianceFound,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[str, dict[str, Any]] = {
    "random_k": {"marker": "o", "linestyle": "-", "color": "black"},
    "best_k": {"marker": "s", "linestyle": "--", "color": "0.4"},
    "diverse_k": {"marker": "D", "linestyle": "-", "color": "0.4", "markerfacecolor": "white"},
    "diverse_best_k": {"marker": "^", "linestyle": "-.", "color": "black", "markerfacecolor": "white"},
    "filter_then_spread": {"marker": "v", "linestyle": ":", "color": "black"},
}
NLL: dict[str, Any] = {"ylabel": "NLL of new answers", "yscale": "log"}
MODE_ERROR: dict[str, Any] = {"ylabel": "probability on the wrong mode", "ylim": (0, None)}


def _k_axis(axis: Any, k: Sequence[int], places: Any = None, *, logarithmic: bool = False, **labels: Any) -> None:
    """Label the horizontal axis with the values of K, at `places` if these are given. `labels` go to `axis.set`."""
    if logarithmic:
        axis.set_xscale("log", base=2)
    axis.set_xticks(k if places is None else places, [str(value) for value in k])
    axis.set(xlabel="K, responses per prompt", **labels)


def _by_selector(axis: Any, k: Sequence[int], series: Mapping[str, Sequence[float]], **labels: Any) -> None:
    for name, values in series.items():
        axis.plot(k, values, label=name, **STYLE[name])
    _k_axis(axis, k, **labels)


def _legend(made: "Figure", axis: Any, columns: int) -> None:
    """Put the legend of an axis below all axes, where it is clear of every line."""
    made.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)


def _in_two_lines(name: str) -> str:
    """Break the long names of selectors."""
    return name.replace("_best_k", "_\nbest_k").replace("_then_", "_\nthen_")


def variance(found: VarianceFound) -> "Figure":
    from matplotlib.ticker import LogLocator, NullLocator

    made, (axis,) = figure(6, 4.2)
    error = found.variance_error
    axis.errorbar(found.k, found.variance, yerr=error, fmt="o", color="black", capsize=4, label="measured")
    axis.plot(found.k, found.predicted, "-", color="black", label="predicted")
    axis.axhline(found.v_x / found.prompts, linestyle="--", color="0.4", label="V_x/n")
    _k_axis(axis, found.k, logarithmic=True, yscale="log", ylabel="variance of the loss estimate")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    _legend(made, axis, 3)
    return made


def budget(found: BudgetFound) -> "Figure":
    from matplotlib.legend_handler import HandlerTuple

    made, (nll, shares, variance) = figure(11, 4.4, columns=3)
    places, keys = np.arange(len(found.k)), dict[str, Any]()
    for shift, step, label, marker, bar in (
        (-0.2, found.last, "after all steps", "o", {"color": "0.6"}),
        (0.2, found.best, "at the best step", "s", {"color": "white", "hatch": "//"}),
    ):
        values = np.array(step.nll["random_k"])
        error = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
        line = nll.errorbar(found.k, values.mean(axis=1), error, marker=marker, color="black", capsize=3)
        bars = shares.bar(places + shift, step.best_k["random_k"], 0.4, edgecolor="black", **bar)
        keys[label] = (line, bars)
    _k_axis(nll, found.k, logarithmic=True, yscale="log", ylabel="NLL (random_k)")
    _k_axis(shares, found.k, places.tolist(), ylabel="share of resamples where best")
    variance.plot([row.k for row in found.rows], [row.variance for row in found.rows], "-", color="black")
    variance.axvline(found.k_star, linestyle="--", color="0.4")
    at = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "right", "va": "top"}
    variance.annotate(f"k* = {found.k_star:.2f}", (found.k_star, 0.95), **at)
    variance.set(xlabel="K", ylabel="predicted variance of the loss", ylim=(0, None))
    shown = {"handler_map": {tuple: HandlerTuple(ndivide=None)}, "handlelength": 4}
    made.legend(keys.values(), keys, loc="outside lower center", ncols=2, frameon=False, **shown)
    return made


def lottery(found: LotteryFound) -> "Figure":
    made, axes = figure(8.5, 4.2, columns=2)
    for axis, table, labels in zip(axes, (found.nll, found.mode_error), (NLL, MODE_ERROR), strict=True):
        for place, values in enumerate(table):
            shift = np.linspace(-0.2, 0.2, len(values))
            axis.plot(place + shift, sorted(values), "o", color="black", markerfacecolor="none", markersize=4)
            axis.plot([place - 0.3, place + 0.3], [np.mean(values)] * 2, "-", color="black", linewidth=2)
        _k_axis(axis, found.k, range(len(found.k)), **labels)
    return made


def by_selector(found: BySelectorFound) -> "Figure":
    made, axes = figure(8.5, 4.2, columns=2)
    for axis, series, labels in zip(axes, (found.nll_mean, found.mode_error_mean), (NLL, MODE_ERROR), strict=True):
        _by_selector(axis, found.k, series, logarithmic=True, **labels)
    _legend(made, axes[1], 4)
    return made


def gradients(found: GradientsFound) -> "Figure":
    made, (left, right) = figure(8.5, 4.2, columns=2)
    rows = found.selectors
    stacked_error(left, [(row.bias_squared, row.variance) for row in rows.values()])
    for place, (row, hatch) in enumerate(zip(rows.values(), ("", "xx", "//", ".."), strict=True)):
        right.bar(place, row.cosine, color="0.8", edgecolor="black", hatch=hatch)
        if row.published is not None:
            for axis, value in ((left, row.published.emse), (right, row.published.cosine)):
                label = "published" if axis is left and place == 0 else None
                axis.plot(place, value, "x", color="black", markersize=10, markeredgewidth=2, label=label)
    for axis in (left, right):
        axis.set_xticks(range(len(rows)), list(map(_in_two_lines, rows)), fontsize=10)
    left.set_ylabel("EMSE")
    right.axhline(0, color="black", linewidth=0.8)
    right.set_ylabel("cosine with the true gradient")
    left.get_legend().remove()
    _legend(made, left, 3)
    return made


def bridge(found: BridgeFound) -> "Figure":
    made, (left, right) = figure(8.5, 4.2, columns=2)
    points = np.array(found.points)
    left.plot(points[:, 0], points[:, 1], ".", color="0.6", markersize=4)
    x, y, error = zip(*((row.similarity, row.cosine, row.error) for row in found.bins), strict=True)
    left.errorbar(x, y, error, marker="o", color="black", capsize=3)
    left.set(xlabel="similarity of two answers", ylabel="cosine of their gradients")
    _by_selector(right, found.k, found.k_eff, ylabel="k_eff", ylim=(0, None))
    _legend(made, right, 4)
    return made


def tokens(found: TokensFound) -> "Figure":
    made, (left, right) = figure(10, 4.6, columns=2)
    series, label = found.mode_kl_mean, "KL(truth || model) over modes, nats"
    _by_selector(left, found.k, series, logarithmic=True, ylabel=label, ylim=(0, None))
    _legend(made, left, 5)
    below = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top", "annotation_clip": False}
    ticks = []
    for place, (name, kept) in enumerate(found.kept_modes.items()):
        right.annotate(_in_two_lines(name), (place, -0.1), fontsize=9, **below)
        for offset, number in ((-0.2, 1), (0.2, -1)):
            bottom = 0.0
            for share, shade, hatch in zip(kept[number], ("white", "0.7", "0.3"), ("", "//", ""), strict=True):
                right.bar(place + offset, share, 0.36, bottom=bottom, color=shade, edgecolor="black", hatch=hatch)
                bottom += share
            ticks.append((place + offset, f"{found.k[number]}"))
    right.set_xticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=10)
    right.set_ylabel("modes kept: A white, B hatched, C dark")
    return made
