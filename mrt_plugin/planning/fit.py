"""Results of training runs: held-out loss by K (responses kept per prompt), and the fit loss = a + b/K."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy.stats import linregress, sem

from mrt_plugin.groups.problems import Problems

Line = TypeVar("Line")

NOT_A_RUN = 'is not a run: it needs k above 0 and a finite loss, as in {"k": 4, "loss": 1.23, "arm": "equal cost"}.'


@dataclass(frozen=True)
class InverseFit:
    """Curve loss = a + b/K. Two runs give no errors, equal losses no `r_squared`: these are NaN."""

    a: float
    b: float
    a_error: float
    b_error: float
    mse: float
    r_squared: float
    runs: int


def fit_inverse_k(k: Sequence[float], loss: Sequence[float]) -> InverseFit:
    """Fit loss = a + b/K, one entry per run. That held-out loss has this form is an assumption: check `r_squared`."""
    ks, losses = np.asarray(k, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if len(np.unique(ks)) < 2 or not (ks > 0).all() or not np.isfinite(losses).all():
        raise ValueError("A fit over K needs runs with at least two different K above 0, and finite losses.")
    line, known = linregress(1 / ks, losses), len(ks) > 2
    mse = float(np.mean((losses - line.intercept - line.slope / ks) ** 2))
    errors = (float(line.intercept_stderr), float(line.stderr)) if known else (math.nan, math.nan)
    r_squared = 1 - mse / float(losses.var()) if losses.var() > 0 else math.nan
    return InverseFit(float(line.intercept), float(line.slope), *errors, mse, r_squared, len(ks))


@dataclass(frozen=True)
class Run:
    """One training run. Runs of one `arm` are fitted together: they share layout, prompts and selector."""

    k: float
    loss: float
    arm: str = "all runs"


@dataclass(frozen=True)
class KResult:
    """Mean held-out loss at one K, and its difference to that at the smallest K. Unknown errors are None."""

    k: float
    runs: int
    loss: float
    error: float | None
    difference: float
    difference_error: float | None


@dataclass(frozen=True)
class ArmResult:
    by_k: list[KResult]
    best_k: float
    fit: InverseFit | None


def read_runs(path: Path) -> list[Run]:
    """Read runs from a JSONL file with `k`, `loss` and optionally `arm`."""
    return [run for _, _, run in read_lines(path, lambda row: _run(row, row["loss"]), NOT_A_RUN)]


UNTRAINED = "Train them with val_set_size and evals_per_epoch in the recipe (2 for a single epoch: Axolotl skips 1)"
"""What a run needs for `last_held_out_loss`."""


def read_results(path: Path) -> tuple[list[Run], list[str]]:
    """Read the finished runs of a grid's `runs.jsonl`, and the names of the unfinished ones.

    If a line has no loss, it is the last one that the trainer saved with a checkpoint in `output_dir`.
    """

    def read(row: dict[str, Any]) -> Run | str:
        loss, folder = row.get("loss"), row.get("output_dir")
        if loss is None and folder is not None:
            loss = last_held_out_loss(Path(folder))
        run = _run(row, 0 if loss is None else loss)
        return str(row.get("recipe") or "") if loss is None else run

    found = read_lines(path, read, NOT_A_RUN)
    missing = [run or f"line {number}" for number, _, run in found if isinstance(run, str)]
    return [run for _, _, run in found if isinstance(run, Run)], list(dict.fromkeys(missing))


def _run(row: dict[str, Any], loss: Any) -> Run:
    options = dict(row.get("options") or {})
    arm = ", ".join([str(row.get("arm", "all runs")), *(f"{name}={value}" for name, value in options.items())])
    run = Run(float(row["k"]), float(loss), arm)
    if not (run.k > 0 and math.isfinite(run.loss)):
        raise ValueError(NOT_A_RUN)
    return run


def last_held_out_loss(folder: Path) -> float | None:
    """Return the last `eval_loss` that the transformers trainer logged in a run's folder; None if there is none."""
    states = folder.glob("checkpoint-*/trainer_state.json")
    last = max(states, key=lambda path: int(path.parent.name.partition("-")[2]), default=None)
    history = json.loads(last.read_text(encoding="utf-8"))["log_history"] if last else []
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return float(losses[-1]) if losses else None


def by_arm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def fit_runs(runs: Iterable[Run]) -> dict[str, InverseFit]:
    fits = {}
    for arm, members in by_arm(runs).items():
        try:
            fits[arm] = fit_inverse_k([run.k for run in members], [run.loss for run in members])
        except ValueError as error:
            raise ValueError(f"{arm}: {error}") from error
    return fits


def weigh_results(runs: Iterable[Run]) -> dict[str, ArmResult]:
    found = {}
    for arm, members in by_arm(runs).items():
        rows: list[KResult] = []
        for k in sorted({run.k for run in members}):
            losses = np.array([run.loss for run in members if run.k == k])
            loss, error = float(losses.mean()), float(sem(losses)) if len(losses) > 1 else None
            first = rows[0] if rows else KResult(k, 0, loss, None, 0.0, None)
            both = None if error is None or first.error is None else float(np.hypot(error, first.error))
            rows.append(KResult(k, len(losses), loss, error, loss - first.loss, both))
        fit = fit_runs(members)[arm] if len(rows) > 1 else None
        found[arm] = ArmResult(rows, min(rows, key=lambda row: row.loss).k, fit)
    return found


def read_lines(path: Path, read: Callable[[Any], Line], expected: str) -> list[tuple[int, str, Line]]:
    """Return number, text and `read(its JSON)` of each line that is not empty. `expected` is the message on errors."""
    problems, found = Problems(str(path)), []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                found.append((number, line, read(json.loads(line))))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                problems.add(f"line {number}", None, expected)
    problems.raise_any()
    return found
