"""Tables and pictures of the experiments: means over seeds with 95 % t intervals."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrt_plugin.planning.diversity import PromptDiversity, fit_diversity, prompt_diversity
from mrt_plugin.report import figure
from recipes.alignment.augmentation import OWNED, SUPPORTS
from recipes.alignment.plans import RESPONSES, SHARES
from recipes.objectives.report import Record, difference, markdown, mean_interval, shown
from recipes.objectives.train import read, run_of, subset_of
from recipes.objectives.world import draw_data

ARMS = {
    ("pro", "random_k"): "PRO on all n",
    ("nll", "best_k"): "SFT on the best of n",
    ("nll", "random_k"): "SFT on all n",
}
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
ORDERS = (1, 2, 3)


def write_report(rates: Mapping[str, float], folder: Path) -> str:
    """Write the pictures, and return the tables in Markdown, of the experiments that were run."""
    parts = [f"Learning rates by tuning: SFT {rates['nll']:g}, PRO {rates['pro']:g}.\n"]
    writers: dict[str, Callable[[Sequence[Record], Path], str]] = {
        "responses": _responses,
        "prompts": _prompts,
        "law": _law,
        "augment": _augment,
    }
    for name, write in writers.items():
        if records := read(folder / f"{name}.jsonl"):
            parts.append(write(records, folder / f"{name}.png"))
    return "\n".join(parts)


def _seeds(records: Sequence[Record], measure: str, **fields: Any) -> dict[int, float]:
    """Return the measure by seed, of the runs with these fields."""
    return {
        record["seed"]: record[measure]
        for record in records
        if all(record[name] == value for name, value in fields.items())
    }


def _responses(records: Sequence[Record], picture: Path) -> str:
    rows, lines = [], []
    for (objective, selector), label in ARMS.items():
        means = []
        for n in RESPONSES:
            fields = {"objective": objective, "selector": selector, "n": n}
            found = {name: _seeds(records, name, **fields) for name in ("reward", "kl", "entropy", "elsewhere")}
            rows.append([label, str(n), *(shown(mean_interval(list(values.values()))) for values in found.values())])
            means.append(mean_interval(list(found["reward"].values())))
        lines.append((label, means))
    made, (axis,) = figure(width=6, height=3.6)
    for place, ((label, means), marker) in enumerate(zip(lines, "os^", strict=True)):
        beside = [n + 0.06 * (place - 1) for n in RESPONSES]  # so that no interval hides another
        axis.errorbar(beside, [m for m, _ in means], [h for _, h in means], marker=marker, capsize=3, label=label)
    axis.set(xlabel="responses per prompt, n", ylabel="expected score", xticks=RESPONSES)
    axis.legend(frameon=False)
    made.savefig(picture, dpi=100)
    apart = []
    for n in RESPONSES:
        pro, best = (
            _seeds(records, "reward", objective=objective, selector=selector, n=n)
            for objective, selector in (("pro", "random_k"), ("nll", "best_k"))
        )
        apart.append([str(n), shown(difference(pro, best))])
    return "\n".join(
        (
            markdown(["", "n", "expected score", "KL to the truth", "entropy", "elsewhere"], rows),
            "PRO less SFT on the best, seed by seed:\n",
            markdown(["n", "expected score"], apart),
        )
    )


def _prompts(records: Sequence[Record], picture: Path) -> str:
    rows, lines, apart = [], {}, []
    for title, steps in (("120 steps", lambda count: 120), ("6 epochs", lambda count: 6 * count // 8)):
        means = []
        for k, count in SHARES.items():
            fields = {"k": k, "steps": steps(count)}
            found = {name: _seeds(records, name, **fields) for name in ("reward", "kl", "coverage")}
            rows.append(
                [title, f"{count} x {k}", *(shown(mean_interval(list(values.values()))) for values in found.values())]
            )
            means.append(mean_interval(list(found["reward"].values())))
        lines[title] = means
        few, many = (
            {name: _seeds(records, name, k=k, steps=steps(SHARES[k])) for name in ("reward", "kl")} for k in (4, 2)
        )
        apart.append([title, *(shown(difference(few[name], many[name])) for name in few)])
    made, (axis,) = figure(width=6, height=3.6)
    for place, ((title, means), marker) in enumerate(zip(lines.items(), "os", strict=True)):
        beside = [k + 0.06 * (place - 0.5) for k in SHARES]
        axis.errorbar(beside, [m for m, _ in means], [h for _, h in means], marker=marker, capsize=3, label=title)
    axis.set(ylabel="expected score")
    axis.set_xticks(list(SHARES), [f"{count} prompts\nx {k} responses" for k, count in SHARES.items()])
    axis.legend(frameon=False)
    made.savefig(picture, dpi=100)
    return "\n".join(
        (
            markdown(["at equal", "prompts x responses", "expected score", "KL to the truth", "coverage"], rows),
            "120 x 4 less 240 x 2, seed by seed:\n",
            markdown(["at equal", "expected score", "KL to the truth"], apart),
        )
    )


def _law(records: Sequence[Record], picture: Path) -> str:
    sets = sorted({(record["subset"], record["prompts"]) for record in records})
    scores = [mean_interval(list(_seeds(records, "reward", subset=s, prompts=n).values())) for s, n in sets]
    means = [mean for mean, _ in scores]
    rows, sensitivity = [], []
    for order in ORDERS:
        found = [_diversity(records, subset, prompts, order) for subset, prompts in sets]
        for p in POWERS:
            line = fit_diversity(found, means, powers=(p,))
            sensitivity.append([str(order), f"{p:g}", f"{line.slope:.3g}", f"{line.mse:.2e}"])
        best = fit_diversity(found, means)
        sensitivity.append([str(order), f"best: {best.p:.2f}", f"{best.slope:.3g}", f"{best.mse:.2e}"])
        if order == 2:
            for (subset, prompts), one, score in zip(sets, found, scores, strict=True):
                kind = subset.replace("+", ", ") or "all subjects"
                rows.append([kind, str(prompts), f"{one.r:.3f}", f"{one.r * prompts**0.5:.2f}", shown(score)])
            _draw_law(found, scores, picture)
    spread = float(np.var(means))
    return "\n".join(
        (
            markdown(["prompts about", "n", "r", "d (p = 0.5)", "expected score"], rows),
            f"Variance of the scores, the error of a flat line: {spread:.2e}. Lines of score on d:\n",
            markdown(["n-gram order", "p", "slope", "MSE"], sensitivity),
        )
    )


def _augment(records: Sequence[Record], picture: Path) -> str:
    """Return the tables of the augmentation. There is no picture."""
    found = [json.loads(path.read_text()) for path in sorted((picture.parent / "augment").glob("[0-9].json"))]
    rows, scores = [], {}
    for label, subset in (
        ("60 prompts", ""),
        ("+ generated, kept by the filter", "filtered"),
        ("+ generated, dropped by the filter", "dropped"),
        ("+ real ones", "real"),
    ):
        own = [record for record in records if _arm(record) == subset]
        measures = ("reward", "kl", "coverage")
        rows.append([label, *(shown(mean_interval([record[name] for record in own])) for name in measures)])
        scores[subset] = {record["seed"]: record["reward"] for record in own}
    pairs = (("filtered", ""), ("dropped", ""), ("real", ""), ("filtered", "dropped"))
    apart = [
        [f"{one} - {other or '60 prompts'}", shown(difference(scores[one], scores[other]))] for one, other in pairs
    ]
    gains = [
        [str(supports), *(f"{np.mean([_gain(one, supports)[name] for one in found]):.3f}" for name in GAINS)]
        for supports in SUPPORTS
    ]
    counts = ", ".join(
        f"{name.replace('_', ' ')} {np.mean([one[name] for one in found]):.1f}"
        for name in (
            "kept",
            "dropped",
            "added",
            "filtered_known",
            "dropped_known",
            "owned_d",
            "filtered_d",
            "dropped_d",
        )
    )
    return "\n".join(
        (
            markdown(["", "expected score", "KL to the truth", "coverage"], rows),
            "Seed by seed:\n",
            markdown(["", "expected score"], apart),
            f"Means over seeds: {counts}.\n",
            markdown(["supports n", *GAINS.values()], gains),
        )
    )


def _arm(record: Record) -> str:
    """Return the arm of the augmentation that a run is of."""
    if record["subset"]:
        return "filtered" if "filtered" in record["subset"] else "dropped"
    return "" if record["prompts"] == OWNED else "real"


GAINS = {"kept": "kept", "r": "gain in r", "d": "gain in d", "d_at_equal": "gain in d from equally many"}


def _gain(found: Mapping[str, Any], supports: int) -> Mapping[str, Any]:
    return next(gain for gain in found["gains"] if gain["supports"] == supports)


def _diversity(records: Sequence[Record], subset: str, prompts: int, order: int) -> PromptDiversity:
    """Return the diversity of a set, of its first seed."""
    seed = min(record["seed"] for record in records)
    run = next(
        run_of(record)
        for record in records
        if (record["subset"], record["prompts"], record["seed"]) == (subset, prompts, seed)
    )
    return prompt_diversity([group["prompt"] for group in subset_of(run, draw_data(seed).groups)], order=order)


def _draw_law(found: Sequence[PromptDiversity], scores: Sequence[tuple[float, float]], picture: Path) -> None:
    made, axes = figure(width=8, height=3.6, columns=2)
    for axis, p in zip(axes, (0.5, 1.0), strict=True):
        d = np.array([one.r * one.prompts**p for one in found])
        axis.errorbar(d, [mean for mean, _ in scores], [half for _, half in scores], fmt="o", capsize=3)
        line = fit_diversity(found, [mean for mean, _ in scores], powers=(p,))
        ends = np.array([d.min(), d.max()])
        axis.plot(ends, line.slope * ends + line.intercept, color="black", linewidth=1)
        axis.set(xlabel=f"d = r · n^{p:g} of the prompts, bigrams of words", ylabel="expected score")
    made.savefig(picture, dpi=100)
