"""Split the variance of a loss estimate into a part from the prompts and a part from the responses.

The loss of response j to prompt i is mu + a_i + e_ij. With V_x the variance of a, and V_{y|x} that of e given the
prompt, the mean over n prompts with K responses has Var[L] = V_x/n + V_{y|x}/(n·K) (arXiv 2606.00544, theorem 1).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mrt_plugin.planning.paired import FEWEST

Losses = Sequence[Sequence[float] | np.ndarray]
"""The losses of each prompt's responses."""

ROUNDING = float(np.finfo(np.float32).eps)
"""Losses with a smaller relative difference count as equal, because a model computes them in single precision."""


@dataclass(frozen=True)
class VarianceComponents:
    """Unbiased estimates of V_x, which can be below 0, and V_{y|x}, in squared units of the loss."""

    v_x: float
    v_yx: float
    prompts: int
    """Number of prompts with at least 2 responses. The estimates use only these."""
    left_out: int
    differing: int
    """Number of prompts whose responses differ in loss by more than rounding. With fewer than 2, V_{y|x} is 0."""

    @property
    def ratio(self) -> float:
        """Return V_x / V_{y|x}; infinite if responses do not differ."""
        return self.v_x / self.v_yx if self.v_yx else math.inf

    @property
    def rho(self) -> float:
        return rho(self.ratio)


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    v_x: Interval
    v_yx: Interval
    ratio: Interval
    rho: Interval


def rho(ratio: float) -> float:
    """Return the correlation of two responses to one prompt, V_x / (V_x + V_{y|x}), from V_x / V_{y|x}; at least 0."""
    return 1.0 if ratio == math.inf else max(ratio, 0.0) / (1 + max(ratio, 0.0))


def estimate_components(losses: Losses) -> VarianceComponents:
    """Estimate V_x and V_{y|x} from the losses of each prompt's responses. Prompts with one response are left out.

    With K_i responses and sample variance s_i² for prompt i, V_{y|x} = mean s_i², and
    V_x = S²(prompt means) - mean(s_i²/K_i). The second term removes the response noise that the prompt means contain.
    """
    table = prompt_table(losses)
    v_x, v_yx, _ = (float(value[0]) for value, _ in _estimate(table[None]))
    differing = int((table[:, 1] > 0).sum())
    return VarianceComponents(v_x, v_yx if differing > 1 else 0.0, len(table), len(losses) - len(table), differing)


def bootstrap_intervals(losses: Losses, *, level: float = 0.9, draws: int = 1000, seed: int = 0) -> Intervals | None:
    """Compute intervals by a bootstrap over prompts; None if the responses of fewer than 5 prompts differ."""
    table = prompt_table(losses)
    if (table[:, 1] > 0).sum() < FEWEST:
        return None
    v_x, v_yx, ratio = studentised_intervals(table, _estimate, level=level, draws=draws, seed=seed)
    return Intervals(v_x, Interval(max(v_yx.low, 0.0), v_yx.high), ratio, Interval(rho(ratio.low), rho(ratio.high)))


Estimate = Callable[[np.ndarray], Sequence[tuple[np.ndarray, np.ndarray]]]
"""Returns (value, standard error), each [draws], of several figures from tables [draws, n, columns]."""


def studentised_intervals(
    table: np.ndarray, estimate: Estimate, *, level: float, draws: int, seed: int
) -> list[Interval]:
    """Compute an interval of each figure by a studentised bootstrap over the rows of a table [n, columns].

    |estimate* - estimate| / standard error*, with * for a bootstrap draw, gives the half-width in standard errors
    (Hall, "The Bootstrap and Edgeworth Expansion", 1992, section 3.6).
    """
    chosen = np.random.default_rng(seed).integers(len(table), size=(draws, len(table)))
    intervals = []
    for (value, error), (values, errors) in zip(estimate(table[None]), estimate(table[chosen]), strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            distances = np.nan_to_num(np.abs(values - value) / errors, nan=np.inf)  # inf for a draw of equal rows
        half = float(np.quantile(distances, level, method="higher") * error[0])
        intervals.append(Interval(float(value[0]) - half, float(value[0]) + half))
    return intervals


def prompt_table(losses: Losses) -> np.ndarray:
    """Return [n, 3]: mean loss, sample variance and variance/K of each prompt with at least 2 responses."""
    rows = [np.asarray(row, dtype=np.float64) for row in losses if len(row) >= 2]
    if len(rows) < 2:
        raise ValueError(
            f"Only {len(rows)} of {len(losses)} prompts have 2 responses or more: what responses add cannot be "
            "measured. Sample more responses per prompt (mrt sample)."
        )
    if not all(np.isfinite(row).all() for row in rows):
        raise ValueError("A loss is not finite: the model overflows on some response. Load it in float32.")
    if _equal(np.concatenate(rows)):
        raise ValueError(
            f"All losses are equal ({rows[0][0]:g}): neither prompts nor responses differ, so there is nothing to "
            "plan. Check that the model is trained and that the responses of a prompt are not copies."
        )
    # Subtracting the overall mean keeps precision when losses are large. No estimate depends on it.
    centre = np.mean([row.mean() for row in rows])
    within = [0.0 if _equal(row) else row.var(ddof=1) for row in rows]
    return np.array([[row.mean() - centre, s, s / len(row)] for row, s in zip(rows, within, strict=True)])


def _equal(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


def _estimate(table: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return (value, standard error), each [draws], for V_x, V_{y|x} and their ratio, from tables [draws, n, 3]."""
    n = table.shape[1]
    means, within, error = table[..., 0], table[..., 1], table[..., 2]
    # Each estimate is a mean over prompts, so the spread over prompts gives its standard error.
    between = (means - means.mean(axis=1, keepdims=True)) ** 2 * n / (n - 1) - error
    v_x, v_yx = between.mean(axis=1), within.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = v_x / v_yx
        slope = (between - ratio[:, None] * within) / v_yx[:, None]
        return tuple(
            (value, part.std(axis=1, ddof=1) / np.sqrt(n))
            for value, part in ((v_x, between), (v_yx, within), (ratio, slope))
        )
