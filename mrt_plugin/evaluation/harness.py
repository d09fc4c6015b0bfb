"""Run tasks of EleutherAI's lm-evaluation-harness on a loaded model."""

import contextlib
import importlib.util
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mrt_plugin.models.log_likelihood import Model


@dataclass(frozen=True)
class Score:
    """One metric of one task."""

    value: float
    stderr: float | None = None
    """None if the harness has none."""
    higher_is_better: bool = True
    documents: dict[int, float] | None = None
    """The score of each document by its number; None if the value is not their mean."""


Scores = dict[str, dict[str, Score]]
"""By task and metric."""


def check_tasks(tasks: Sequence[str], include: str | Path | None = None) -> Any:
    """Check that the harness has these tasks, and return its task manager. Call this before loading a model.

    `include` is a folder with your own task files.

    Raises:
        ImportError: if the harness is not installed; names the package.
        ValueError: for an unknown task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ImportError('Tasks need the lm-evaluation-harness: pip install "lm_eval[hf]", or leave out --lm-eval.')
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))  # reads some thousand names
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise ValueError(f"The lm-evaluation-harness has no task {', '.join(unknown)}: `lm-eval ls tasks` lists them.")
    return manager


def run_tasks(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    manager: Any,
    *,
    limit: int | None = None,
) -> Scores:
    """Score a model on tasks, without a chat template, as the harness does by default.

    Args:
        model: model in evaluation mode.
        tokenizer: the model's tokenizer.
        tasks: names of tasks or groups.
        manager: task manager from `check_tasks`.
        limit: maximum examples per task; all if None.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is only for results
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),  # type: ignore[arg-type]
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=1000,
            log_samples=True,
            verbosity=logging.ERROR,
        )
    assert found is not None, "one process, so there is a result"
    scores: Scores = {}
    for task, results in found["results"].items():
        for name, value in results.items():
            metric, _, rule = name.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or "," not in name:
                continue
            error = results.get(f"{metric}_stderr,{rule}")
            known = isinstance(error, int | float) and math.isfinite(error)
            scores.setdefault(task, {})[name.removesuffix(",none")] = Score(
                value=float(value),
                stderr=float(error) if known else None,
                higher_is_better=bool((found["higher_is_better"].get(task) or {}).get(metric)),
                documents=_documents(found["samples"].get(task, []), metric, rule, float(value)),
            )
    return scores


def _documents(samples: Sequence[dict[str, Any]], metric: str, rule: str, value: float) -> dict[int, float] | None:
    """Return the score of each document; None if their mean is not the task's value."""
    scored = {
        sample["doc_id"]: float(sample[metric])
        for sample in samples
        if sample["filter"] == rule and isinstance(sample.get(metric), int | float)
    }
    if not scored or not math.isclose(sum(scored.values()) / len(scored), value, abs_tol=1e-9):
        return None
    return scored
