"""Tables and a picture of the comparison: means over seeds with intervals, and differences seed by seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from mrt_plugin.markdown import markdown_table
from mrt_plugin.report import figure

MEASURES = {
    "kl": "KL to the truth",
    "coverage": "coverage",
    "nll": "held-out NLL",
    "elsewhere": "elsewhere",
    "reward": "expected score",
    "entropy": "entropy",
}

Record = Mapping[str, Any]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % t interval over seeds.

    Example:

    >>> mean, half = mean_interval([1.0, 2.0, 3.0])
    >>> mean, round(half, 3)
    (2.0, 2.484)
    """
    found = np.array(values)
    if len(found) < 2:
        return float(found.mean()), float("nan")
    return float(found.mean()), float(t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))


def by_arm(records: Sequence[Record], arm: str, measure: str) -> dict[Any, dict[int, float]]:
    """Return the measure of each seed, by the value of `arm` (a field of the runs)."""
    found: dict[Any, dict[int, float]] = {}
    for record in records:
        found.setdefault(record[arm], {})[record["seed"]] = record[measure]
    return found


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[float, float]:
    """Return the mean of one - other over the seeds of both, and the half width of its interval."""
    seeds = sorted(set(one) & set(other))
    return mean_interval([one[seed] - other[seed] for seed in seeds])


def shown(value: tuple[float, float], digits: int = 3) -> str:
    """Return a mean with its half width."""
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(markdown_table(columns, rows)) + "\n"


def write_report(records: Sequence[Record], tuning: Sequence[Record], folder: Path) -> str:
    """Write `objectives.png`, and return the tables in Markdown."""
    arms = list(dict.fromkeys(record["objective"] for record in records))
    arms.sort(key=["none", "nll", "dft", "gem", "pro"].index)
    tables = {name: by_arm(records, "objective", name) for name in MEASURES}
    rates = {record["objective"]: record["learning_rate"] for record in records}
    rows = []
    for arm in arms:
        label = "base model" if arm == "none" else f"`{arm}`"
        rate = "" if arm == "none" else f"{rates[arm]:g}"
        rows.append([label, rate, *(shown(mean_interval(list(tables[name][arm].values()))) for name in MEASURES)])
    apart = [
        [f"`{arm}` - `nll`", *(shown(difference(tables[name][arm], tables[name]["nll"])) for name in MEASURES)]
        for arm in arms
        if arm not in ("none", "nll")
    ]
    _picture(arms, tables).savefig(folder / "objectives.png", dpi=100)
    tried = by_arm([{**run, "arm": (run["objective"], run["learning_rate"])} for run in tuning], "arm", "kl")
    grid = [
        [f"`{name}`", f"{rate:g}", f"{np.mean(list(kl.values())):.3f}"] for (name, rate), kl in sorted(tried.items())
    ]
    seeds = len({record["seed"] for record in records})
    return "\n".join(
        (
            f"Means over {seeds} seeds with 95 % t intervals:\n",
            markdown(["objective", "learning rate", *MEASURES.values()], rows),
            "The same seeds, each less `nll`:\n",
            markdown(["", *MEASURES.values()], apart),
            "Tuning, mean KL on two other worlds:\n",
            markdown(["objective", "learning rate", "KL"], grid),
        )
    )


def _picture(arms: Sequence[str], tables: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Any:
    panels = {"kl": "lower is better", "coverage": "higher is better", "nll": "nats per response, lower is better"}
    made, axes = figure(width=10, height=3.4, columns=len(panels))
    for axis, (name, direction) in zip(axes, panels.items(), strict=True):
        for place, arm in enumerate(arms):
            mean, half = mean_interval(list(tables[name][arm].values()))
            axis.bar(place, mean, yerr=half, capsize=4, color=str(0.9 - 0.15 * place), edgecolor="black")
        axis.set_xticks(range(len(arms)), ["base" if arm == "none" else arm for arm in arms])
        axis.set_title(f"{MEASURES[name]}\n({direction})", fontsize=10)
    return made
