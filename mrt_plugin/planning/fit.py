"""Fit held-out loss against K, the responses kept per prompt, over a set of runs: loss = a + b/K, by least squares."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mrt_plugin.groups.problems import Problems

Line = TypeVar("Line")


@dataclass(frozen=True)
class InverseFit:
    """Fitted curve loss = a + b/K."""

    a: float
    """Loss in the limit of infinitely many responses."""
    b: float
    """Extra loss at K = 1 compared with that limit."""
    a_error: float
    """Standard error of a; NaN with only two runs."""
    b_error: float
    mse: float
    """Mean squared residual."""
    r_squared: float
    """Share of the variance over runs that the fit explains; NaN if all losses are equal."""
    runs: int

    def at(self, k: float) -> float:
        """Return the fitted loss at K."""
        return self.a + self.b / k


def fit_inverse_k(k: Sequence[float], loss: Sequence[float]) -> InverseFit:
    """Fit loss = a + b/K to a set of runs, one entry per run.

    The variance of a loss estimate has this form (`mrt_plugin.planning.variance`). That held-out loss has it too is an
    assumption: check `r_squared` and the residuals.

    Raises:
        ValueError: with fewer than two different K, a K that is not above 0, a loss that is not finite, or unequal
            numbers of K and losses.

    Example:

    >>> fit = fit_inverse_k([1, 2, 4], [2.0, 1.5, 1.25])
    >>> round(fit.a, 6), round(fit.b, 6), round(fit.at(8), 6)
    (1.0, 1.0, 1.125)
    """
    ks, losses = np.asarray(k, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if ks.shape != losses.shape or ks.ndim != 1:
        raise ValueError(f"Give one loss per K: {ks.size} values of K and {losses.size} losses.")
    if len(np.unique(ks)) < 2 or not (ks > 0).all() or not np.isfinite(losses).all():
        raise ValueError("A fit over K needs runs with at least two different K above 0, and finite losses.")
    design = np.stack([np.ones_like(ks), 1 / ks], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, losses, rcond=None)
    residuals = losses - design @ [a, b]
    free, spread = len(ks) - 2, float(((losses - losses.mean()) ** 2).sum())
    noise = float(residuals @ residuals) / free if free else np.nan
    a_error, b_error = np.sqrt(noise * np.diag(np.linalg.inv(design.T @ design)))
    return InverseFit(
        a=float(a),
        b=float(b),
        a_error=float(a_error),
        b_error=float(b_error),
        mse=float((residuals**2).mean()),
        r_squared=1 - float(residuals @ residuals) / spread if spread > 0 else np.nan,
        runs=len(ks),
    )


@dataclass(frozen=True)
class Run:
    """K and held-out loss of one training run."""

    k: float
    loss: float
    arm: str = "all runs"
    """Name of the runs that are fitted together, which share layout, prompts and selector."""

    def problem(self) -> str | None:
        """Return a message if the run cannot be fitted."""
        return None if self.k > 0 and math.isfinite(self.loss) else "needs k above 0 and a finite loss."


def read_runs(path: Path) -> list[Run]:
    """Read runs from a JSONL file with `k`, `loss` and optionally `arm`.

    Raises:
        DataError: if lines are not valid runs; lists them.
    """

    def read(row: dict[str, Any]) -> Run:
        return Run(float(row["k"]), float(row["loss"]), str(row.get("arm", "all runs")))

    lines = read_lines(path, read, 'is not a run: write {"k": 4, "loss": 1.23}.', Run.problem)
    return [run for _, _, run in lines]


def fit_runs(runs: Iterable[Run]) -> dict[str, InverseFit]:
    """Fit the runs of each arm.

    Raises:
        ValueError: for an arm with fewer than two different K.
    """
    fits = {}
    for arm, members in by_arm(runs).items():
        try:
            fits[arm] = fit_inverse_k([run.k for run in members], [run.loss for run in members])
        except ValueError as error:
            raise ValueError(f"{arm}: {error}") from error
    return fits


def by_arm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return the runs of each arm."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def read_lines(
    path: Path,
    read: Callable[[Any], Line],
    expected: str,
    problem: Callable[[Line], str | None] = lambda line: None,
) -> list[tuple[int, str, Line]]:
    """Read the lines of a JSONL file that are not empty: their numbers, texts, and what `read` makes of their JSON.

    Args:
        path: the file.
        read: builds the result from one JSON value.
        expected: message for a line from which `read` can build nothing.
        problem: message for a result that is not allowed; None if it is.

    Raises:
        DataError: if lines are wrong; lists them.
    """
    problems, found = Problems(str(path)), []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            made = read(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            problems.add(f"line {number}", None, expected)
            continue
        wrong = problem(made)
        if wrong is not None:
            problems.add(f"line {number}", None, wrong)
        found.append((number, line, made))
    problems.raise_any()
    return found
