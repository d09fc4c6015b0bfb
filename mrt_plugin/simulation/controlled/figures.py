"""Draw one figure per experiment from its numbers. Series differ by marker, line and hatch, not by colour."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mrt_plugin.report import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[str, dict[str, Any]] = {
    "random_k": {"marker": "o", "linestyle": "-", "color": "black"},
    "best_k": {"marker": "s", "linestyle": "--", "color": "0.4"},
    "diverse_k": {"marker": "D", "linestyle": "-", "color": "0.4", "markerfacecolor": "white"},
    "diverse_best_k": {"marker": "^", "linestyle": "-.", "color": "black", "markerfacecolor": "white"},
    "filter_then_spread": {"marker": "v", "linestyle": ":", "color": "black"},
}
HATCHES = {"random_k": "", "best_k": "xx", "diverse_best_k": "//", "filter_then_spread": ".."}

CAPTIONS = {
    "variance": "Marks: measured over repeats. Line: V_x/n + V_{y|x}/(n·K) with the true components. The broken line "
    "is what is left with endless responses.",
    "budget": "Left: NLL after all steps and at each network's best step (random_k). Middle: which K comes out best "
    "when the repeats are drawn again. Right: the variance that k* minimises.",
    "lottery": "Each mark is one run, trained on its own random K of 32 answers per prompt; the bar is the mean. "
    "Left: NLL, logarithmic. Right: the share of probability on the wrong mode.",
    "by_selector": "Left: NLL on fresh answers, logarithmic. Right: the share of probability on the wrong mode.",
    "gradients": "Left: squared bias (grey) and variance (hatched) of the per-prompt loss. Right: cosine with the "
    "true gradient. Crosses: published.",
    "bridge": "Left: pairs of answers to one prompt; the line joins bin means. Right: the heuristic number of "
    "different answers kept.",
    "tokens": "Left: KL from the true modes to the model's on new prompts. Right: which modes each selection kept at "
    "the second and the last K.",
}


def draw(name: str, found: Mapping[str, Any]) -> "Figure":
    """Draw the figure of one experiment, by its name in `run.EXPERIMENTS`."""
    made: Figure = globals()[f"_{name}"](found)
    return made


def _variance(found: Mapping[str, Any]) -> "Figure":
    made, (axis,) = figure()
    k = np.array(found["k"])
    axis.errorbar(
        k, found["variance"], yerr=found["variance_error"], fmt="o", color="black", capsize=4, label="measured"
    )
    axis.plot(k, found["predicted"], "-", color="black", label="predicted")
    axis.axhline(found["v_x"] / found["prompts"], linestyle="--", color="0.4", label="V_x/n")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(k, [str(value) for value in k])
    axis.set_xlabel("K, responses per prompt")
    axis.set_ylabel("variance of the loss estimate")
    axis.legend(frameon=False)
    return made


def _budget(found: Mapping[str, Any]) -> "Figure":
    made, (nll, shares, variance) = figure(12, 4, columns=3)
    k = np.array(found["k"])
    for key, label, marker in (("nll_last_step", "after all steps", "o"), ("nll_best_step", "at the best step", "s")):
        values = np.array(found[key]["random_k"])
        error = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
        nll.errorbar(k, values.mean(axis=1), yerr=error, marker=marker, color="black", capsize=3, label=label)
    nll.set_yscale("log")
    nll.set_xticks(k)
    nll.set_ylabel("NLL (random_k)")
    nll.set_xlabel("K")
    nll.legend(frameon=False)
    place = np.arange(len(k))
    shares.bar(
        place - 0.2, found["best_k_last_step"]["random_k"], 0.4, color="0.6", edgecolor="black", label="all steps"
    )
    shares.bar(
        place + 0.2,
        found["best_k_best_step"]["random_k"],
        0.4,
        color="white",
        edgecolor="black",
        hatch="//",
        label="best step",
    )
    shares.set_xticks(place, [str(value) for value in k])
    shares.set_xlabel("K")
    shares.set_ylabel("share of resamples in which K is best")
    shares.legend(frameon=False)
    curve = found["variance_curve"]
    variance.plot([row["k"] for row in curve], [row["variance"] for row in curve], "-", color="black")
    variance.axvline(found["k_star"], linestyle="--", color="0.4")
    variance.annotate(
        f"k* = {found['k_star']:.2f}",
        (found["k_star"], 0.95),
        xycoords=("data", "axes fraction"),
        rotation=90,
        ha="right",
        va="top",
    )
    variance.set_xlabel("K")
    variance.set_ylabel("predicted variance of the loss estimate")
    variance.set_ylim(bottom=0)
    return made


def _lottery(found: Mapping[str, Any]) -> "Figure":
    made, axes = figure(10, 4, columns=2)
    for axis, key, label in zip(axes, ("nll", "mode_error"), ("NLL", "mode error"), strict=True):
        for place, values in enumerate(found[key]):
            shift = np.linspace(-0.2, 0.2, len(values))
            axis.plot(place + shift, sorted(values), "o", color="black", markerfacecolor="none", markersize=4)
            axis.plot([place - 0.3, place + 0.3], [np.mean(values)] * 2, "-", color="black", linewidth=2)
        axis.set_xticks(range(len(found["k"])), [str(k) for k in found["k"]])
        axis.set_xlabel("K, responses per prompt")
        axis.set_ylabel(label)
    axes[0].set_yscale("log")
    axes[1].set_ylim(bottom=0)
    return made


def _by_selector(found: Mapping[str, Any]) -> "Figure":
    made, axes = figure(10, 4, columns=2)
    for axis, key, label in zip(axes, ("nll_mean", "mode_error_mean"), ("NLL", "mode error"), strict=True):
        for name, values in found[key].items():
            axis.plot(found["k"], values, label=name, **STYLE[name])
        axis.set_xscale("log", base=2)
        axis.set_xticks(found["k"], [str(k) for k in found["k"]])
        axis.set_xlabel("K, responses per prompt")
        axis.set_ylabel(label)
    axes[0].set_yscale("log")
    axes[1].set_ylim(bottom=0)
    axes[1].legend(frameon=False)
    return made


def _gradients(found: Mapping[str, Any]) -> "Figure":
    made, (left, right) = figure(10, 4, columns=2)
    rows = found["selectors"]
    for place, (name, row) in enumerate(rows.items()):
        bias = max(row["bias_squared"], 0)
        left.bar(place, bias, color="0.6", edgecolor="black", label="bias²" if place == 0 else None)
        left.bar(
            place,
            row["variance"],
            bottom=bias,
            color="white",
            edgecolor="black",
            hatch="//",
            label="variance" if place == 0 else None,
        )
        right.bar(place, row["cosine"], color="0.8", edgecolor="black", hatch=HATCHES[name])
        if row["published"] is not None:
            left.plot(place, row["published"]["emse"], "x", color="black", markersize=10, markeredgewidth=2)
            right.plot(place, row["published"]["cosine"], "x", color="black", markersize=10, markeredgewidth=2)
    for axis in (left, right):
        axis.set_xticks(range(len(rows)), list(rows), fontsize=8)
    left.set_ylabel("EMSE")
    left.legend(frameon=False)
    right.axhline(0, color="black", linewidth=0.8)
    right.set_ylabel("cosine with the true gradient")
    return made


def _bridge(found: Mapping[str, Any]) -> "Figure":
    made, (left, right) = figure(10, 4, columns=2)
    points = np.array(found["points"])
    left.plot(points[:, 0], points[:, 1], ".", color="0.6", markersize=4)
    left.errorbar(
        [row["similarity"] for row in found["bins"]],
        [row["cosine"] for row in found["bins"]],
        yerr=[row["error"] for row in found["bins"]],
        marker="o",
        color="black",
        capsize=3,
    )
    left.set_xlabel("similarity of two answers")
    left.set_ylabel("cosine of their gradients")
    left.set_title(f"r = {found['correlation']:.2f}", fontsize=10)
    for name, values in found["k_eff"].items():
        right.plot(found["k"], values, label=name, **STYLE[name])
    right.set_xticks(found["k"])
    right.set_xlabel("K")
    right.set_ylabel("k_eff")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    return made


def _tokens(found: Mapping[str, Any]) -> "Figure":
    made, (left, right) = figure(11, 4, columns=2)
    for name, values in found["mode_kl_mean"].items():
        left.plot(found["k"], values, label=name, **STYLE[name])
    left.set_xscale("log", base=2)
    left.set_xticks(found["k"], [str(k) for k in found["k"]])
    left.set_xlabel("K, responses per prompt")
    left.set_ylabel("KL(truth || model) over modes, nats")
    left.set_ylim(0, 1.5 * max(max(values) for values in found["mode_kl_mean"].values()))
    left.legend(frameon=False, loc="upper right", ncols=2)
    names, ticks = list(found["kept_modes"]), []
    for place, name in enumerate(names):
        for offset, k in ((-0.2, found["k"][1]), (0.2, found["k"][-1])):
            shares, bottom = found["kept_modes"][name][found["k"].index(k)], 0.0
            for share, shade, hatch in zip(shares, ("white", "0.7", "0.3"), ("", "//", ""), strict=True):
                right.bar(place + offset, share, 0.36, bottom=bottom, color=shade, edgecolor="black", hatch=hatch)
                bottom += share
            ticks.append((place + offset, f"{k}"))
    right.set_xticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=8)
    for place, name in enumerate(names):
        right.annotate(
            name.replace("_", "\n", 1),
            (place, -0.1),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
            fontsize=8,
            annotation_clip=False,
        )
    right.set_ylabel("modes kept: A white, B hatched, C dark")
    return made
