"""Results of training runs: held-out loss by K (responses kept per prompt), and the fit loss = a + b/K."""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy.stats import linregress, sem

from mrt_plugin.groups.problems import Problems

Line = TypeVar("Line")


@dataclass(frozen=True)
class InverseFit:
    """Curve loss = a + b/K by least squares. Two runs give no errors, equal losses no `r_squared`: these are NaN."""

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
    return InverseFit(
        a=float(line.intercept),
        b=float(line.slope),
        a_error=float(line.intercept_stderr) if known else math.nan,
        b_error=float(line.stderr) if known else math.nan,
        mse=mse,
        r_squared=1 - mse / float(losses.var()) if losses.var() > 0 else math.nan,
        runs=len(ks),
    )


@dataclass(frozen=True)
class Run:
    """K and held-out loss of one training run."""

    k: float
    loss: float
    arm: str = "all runs"
    """Name of the runs that are fitted together, which share layout, prompts and selector."""


@dataclass(frozen=True)
class KResult:
    """Mean held-out loss of the runs at one K, and the difference to the smallest K. Unknown errors are None."""

    k: float
    runs: int
    loss: float
    error: float | None
    difference: float
    difference_error: float | None


@dataclass(frozen=True)
class ArmResult:
    """Results of one arm. The fit is None with only one K so far."""

    by_k: list[KResult]
    best_k: float
    fit: InverseFit | None


def read_runs(path: Path) -> list[Run]:
    """Read runs from a JSONL file with `k`, `loss` and optionally `arm`."""
    runs = read_lines(path, _run, 'is not a run: write {"k": 4, "loss": 1.23}.', _problem)
    return [run for _, _, run in runs]


def read_results(path: Path) -> tuple[list[Run], list[str]]:
    """Read the finished runs of a grid's `runs.jsonl`, and the names of the unfinished ones.

    If a line has no loss, it is the last one that the trainer saved with a checkpoint in `output_dir`.
    """

    def read(row: dict[str, Any]) -> Run | str | None:
        loss = row.get("loss")
        if loss is None and row.get("output_dir") is not None:
            loss = last_held_out_loss(Path(row["output_dir"]))
        run = _run(row | {"loss": math.nan if loss is None else loss})
        return row.get("recipe") if loss is None else run

    expected = 'is not a run: write {"k": 4, "loss": 1.23, "arm": "equal cost"}.'
    found = read_lines(path, read, expected, _problem)
    runs = [run for _, _, run in found if isinstance(run, Run)]
    missing = [str(run or f"line {number}") for number, _, run in found if not isinstance(run, Run)]
    return runs, list(dict.fromkeys(missing))


def _run(row: dict[str, Any]) -> Run:
    return Run(float(row["k"]), float(row["loss"]), str(row.get("arm", "all runs")))


def _problem(run: Run | str | None) -> str | None:
    fits = not isinstance(run, Run) or (run.k > 0 and math.isfinite(run.loss))
    return None if fits else "needs k above 0 and a finite loss."


def last_held_out_loss(folder: Path) -> float | None:
    """Return the last `eval_loss` that the transformers trainer logged in a run's folder; None if there is none."""
    states = {
        int(re.sub(r"\D", "", path.parent.name)): path for path in folder.glob("checkpoint-*/trainer_state.json")
    }
    state = json.loads(states[max(states)].read_text(encoding="utf-8")) if states else {"log_history": []}
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
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
    """Compute for each arm the losses and errors by K, the difference to the smallest K, and the fit."""
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


def read_lines(
    path: Path,
    read: Callable[[Any], Line],
    expected: str,
    problem: Callable[[Line], str | None] = lambda line: None,
) -> list[tuple[int, str, Line]]:
    """Read a JSONL file: the numbers and texts of its lines that are not empty, and what `read` makes of their JSON.

    `expected` is the message where `read` can build nothing, `problem` returns one for a result that is not allowed.
    """
    problems, found = Problems(str(path)), []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            made = read(json.loads(line))
            wrong = problem(made)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            wrong = expected
        if wrong is None:
            found.append((number, line, made))
        else:
            problems.add(f"line {number}", None, wrong)
    problems.raise_any()
    return found
