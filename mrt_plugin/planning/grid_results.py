"""Summarise the results of a grid: the loss by K in each arm, and its fit over 1/K."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mrt_plugin.groups.problems import Problems
from mrt_plugin.planning.fit import Run, fit_runs


def read_results(path: Path) -> tuple[list[Run], list[str]]:
    """Read the finished runs of a `runs.jsonl`, and the names of the unfinished ones.

    If a line has no loss, it is the last held-out loss that the trainer saved with the last checkpoint in
    `output_dir`.

    Raises:
        DataError: if lines are not valid runs; lists them.
    """
    problems, runs, missing = Problems(str(path)), [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            k, loss = float(row["k"]), row.get("loss")
            arm = str(row.get("arm", "all runs"))
            if loss is None and row.get("output_dir") is not None:
                loss = last_held_out_loss(Path(row["output_dir"]))
            loss = None if loss is None else float(loss)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            problems.add(f"line {number}", None, 'is not a run: write {"k": 4, "loss": 1.23, "arm": "equal cost"}.')
            continue
        if loss is None:
            missing.append(str(row.get("recipe") or f"line {number}"))
        elif not (k > 0 and math.isfinite(loss)):
            problems.add(f"line {number}", None, "needs k above 0 and a finite loss.")
        else:
            runs.append(Run(k, loss, arm))
    problems.raise_any()
    return runs, list(dict.fromkeys(missing))


def last_held_out_loss(folder: Path) -> float | None:
    """Return the last `eval_loss` that the transformers trainer logged in a run's folder; None if there is none."""
    states = {
        int(re.sub(r"\D", "", path.parent.name)): path for path in folder.glob("checkpoint-*/trainer_state.json")
    }
    if not states:
        return None
    history = json.loads(states[max(states)].read_text(encoding="utf-8"))["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return float(losses[-1]) if losses else None


def weigh_results(runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """Compute for each arm the mean loss and standard error by K, the difference to the smallest K, and a + b/K fits.

    The fit is None for an arm with only one K so far. Other numbers that need more runs are None.

    Example:

    >>> found = weigh_results([Run(1, 2.0), Run(1, 2.2), Run(4, 1.6), Run(4, 1.6)])["all runs"]
    >>> [(row["k"], round(row["loss"], 3), round(row["difference"], 3)) for row in found["by_k"]]
    [(1.0, 2.1, 0.0), (4.0, 1.6, -0.5)]
    """
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    found: dict[str, dict[str, Any]] = {}
    for arm, members in arms.items():
        ks = sorted({run.k for run in members})
        rows: list[dict[str, Any]] = []
        for k in ks:
            losses = np.array([run.loss for run in members if run.k == k])
            error = float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else None
            first = rows[0] if rows else None
            errors = (error, first["error"]) if first else (None, None)
            rows.append(
                {
                    "k": k,
                    "runs": len(losses),
                    "loss": float(losses.mean()),
                    "error": error,
                    "difference": float(losses.mean()) - first["loss"] if first else 0.0,
                    "difference_error": None if None in errors else float(np.hypot(*errors)),  # type: ignore[arg-type]
                }
            )
        fit = next(iter(fit_runs(members).values())) if len(ks) > 1 else None
        found[arm] = {"by_k": rows, "best_k": min(rows, key=lambda row: row["loss"])["k"], "fit": fit}
    return found
