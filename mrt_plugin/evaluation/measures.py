"""The measures of an evaluation: what each is called, and which way is better."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measure:
    """One measure."""

    label: str
    """With `M` for the number of samples, where it depends on it."""
    better: Literal["lower", "higher", "neither"]


MEASURES = {
    "nll_per_token": Measure("held-out NLL per token, nats", "lower"),
    "nll_per_response": Measure("held-out NLL per response, nats", "lower"),
    "coverage": Measure("coverage of M", "higher"),
    "alignment": Measure("alignment", "higher"),
    "diversity": Measure("diversity", "neither"),
    "length": Measure("length, words", "neither"),
    "reward": Measure("reward, mean", "higher"),
    "best_reward": Measure("reward, best of M", "higher"),
    "pass": Measure("pass@M", "higher"),
}
"""In the order in which they are shown."""


def label(name: str, m: int | None = None) -> str:
    """What a measure is called at m samples.

    Example:

    >>> label("coverage", 4), label("pass", 1), label("diversity")
    ('coverage of 4', 'pass@1', 'diversity')
    """
    return MEASURES[name].label.replace("M", str(m)) if m is not None else MEASURES[name].label


def outcome(name: str, interval: list[float] | None) -> str:
    """What a difference with this interval says: better, worse, different, or unclear.

    Example:

    >>> outcome("coverage", [0.01, 0.03]), outcome("nll_per_token", [0.01, 0.03]), outcome("length", [-1.0, 2.0])
    ('better', 'worse', 'unclear')
    """
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "unclear"
    better = MEASURES[name].better
    if better == "neither":
        return "different"
    return "better" if (interval[0] > 0) == (better == "higher") else "worse"
