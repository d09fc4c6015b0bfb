"""Define the measures of an evaluation: labels, which direction is better, and how to read them from a result."""

from dataclasses import dataclass
from typing import Any, Literal

from mrt_plugin.planning.paired import LEVEL


@dataclass(frozen=True)
class Measure:
    """One measure."""

    label: str
    """Label. `M` stands for the number of samples if the measure depends on it."""
    better: Literal["lower", "higher", "neither"]


MEASURES = {
    "nll_per_token": Measure("held-out NLL per token, nats", "lower"),
    "nll_per_response": Measure("held-out NLL per response, nats", "lower"),
    "coverage": Measure("coverage of M", "higher"),
    "alignment": Measure("alignment", "higher"),
    "diversity": Measure("diversity", "neither"),
    "length": Measure("length, words or characters", "neither"),
    "reward": Measure("reward, mean", "higher"),
    "best_reward": Measure("reward, best of M", "higher"),
    "pass": Measure("pass@M", "higher"),
}
"""All measures, in the order in which they are shown."""

CURVES = ("coverage", "pass", "best_reward")
"""Measures that depend on the number of samples."""


def label(name: str, m: int | None = None) -> str:
    """Return the label of a measure at m samples.

    Example:

    >>> label("coverage", 4), label("pass", 1), label("diversity")
    ('coverage of 4', 'pass@1', 'diversity')
    """
    return MEASURES[name].label.replace("M", str(m)) if m is not None else MEASURES[name].label


def outcome(name: str, interval: list[float] | None, chance: float | None = None) -> str:
    """Classify a difference as better, worse, different or unclear.

    Args:
        name: name of the measure.
        interval: interval of the difference.
        chance: its p-value, corrected for the number of comparisons; None for a single comparison.

    Example:

    >>> outcome("coverage", [0.01, 0.03]), outcome("nll_per_token", [0.01, 0.03]), outcome("length", [-1.0, 2.0])
    ('better', 'worse', 'unclear')
    """
    if interval is None or interval[0] <= 0 <= interval[1] or (chance is not None and chance > 1 - LEVEL):
        return "unclear"
    better = MEASURES[name].better
    if better == "neither":
        return "different"
    return "better" if (interval[0] > 0) == (better == "higher") else "worse"


def measure_keys(result: dict[str, Any]) -> list[tuple[str, int | None]]:
    """Return all measures taken on any model, in order."""
    found = {(row["measure"], row["m"]) for model in result["models"] for row in model["measures"]}
    return sorted(found, key=lambda key: (list(MEASURES).index(key[0]), key[1] or 0))


def ends_of(result: dict[str, Any], name: str) -> tuple[int, ...]:
    """Return the smallest and the largest M that a measure was taken at."""
    ms = [m for found, m in measure_keys(result) if found == name and m is not None]
    return (min(ms), max(ms)) if ms else ()


def points_of(model: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the rows of a measure on a model, without those that have no value."""
    return [row for row in model["measures"] if row["measure"] == name and row["value"] is not None]
