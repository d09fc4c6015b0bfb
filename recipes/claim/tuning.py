"""Choose the settings of the main runs from the runs on the tuning split."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from recipes.claim.arms import ARMS
from recipes.claim.records import key_of
from recipes.claim.train import Setting


def kl_at(curve: Sequence[dict[str, float]], pairs: float) -> float:
    """Return the KL after `pairs`, interpolated in the logarithm of the pairs between two checkpoints.

    Raises:
        ValueError: if `pairs` is outside the checkpoints.

    Example:

    >>> kl_at([{"pairs": 100, "kl": 1.0}, {"pairs": 400, "kl": 0.5}], 200)
    0.75
    """
    points = [place for place in curve if place["pairs"] > 0]
    first, last = points[0]["pairs"], points[-1]["pairs"]
    if not first * (1 - 1e-9) <= pairs <= last * (1 + 1e-9):
        raise ValueError(f"{pairs:g} pairs are outside of what was measured, {first:g} to {last:g}.")
    return float(np.interp(np.log(pairs), np.log([p["pairs"] for p in points]), [p["kl"] for p in points]))


class Tuned:
    """Best setting of each arm at a number of pairs: the one with the lowest mean KL over the tuning seeds."""

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self.curves: dict[str, dict[Setting, list[list[dict[str, float]]]]] = {}
        for record in records:
            key = key_of(record)
            self.curves.setdefault(key.arm, {}).setdefault(key.setting, []).append(record["curve"])

    def mean_kl(self, arm: str, setting: Setting, pairs: float) -> float:
        """Return the mean KL over the tuning seeds."""
        return float(np.mean([kl_at(curve, pairs) for curve in self.curves[arm][setting]]))

    def best(self, arm: str, pairs: float, among: Iterable[Setting] | None = None) -> Setting:
        """Return the best of all settings tried, or of `among`."""
        settings = self.curves[arm] if among is None else among
        return min(settings, key=lambda setting: (self.mean_kl(arm, setting, pairs), setting))

    def chosen(self, n: int) -> dict[str, list[Setting]]:
        """Return the settings of the main runs: each arm's best at the start and at the end of its reports.

        Reports start when the arm has seen n prompts once, and end at 8n pairs.
        """
        return {
            name: sorted({self.best(name, arm.k * n), self.best(name, arm.pairs(n))})
            for name, arm in ARMS.items()
            if name in self.curves
        }
