"""Measure forgetting: the loss on a probe of general texts and the scores of tasks, before and after fine-tuning.

Changes are given in points, so that the same two thresholds apply to all. A point of a task's score is 0.01.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.evaluation.result import Interval, ProbeChange, TaskChange
from mrt_plugin.models.log_likelihood import Model, check_ids, log_likelihoods
from mrt_plugin.planning.paired import Bootstrap, Measured

FLAGGED = 2.0
"""Points lost at which a drop is flagged."""
SIGNIFICANT = 5.0
"""Points lost at which a drop is called significant: a rule of thumb for its size, not a statistical test."""


@cache
def probe() -> list[dict[str, str]]:
    """Return the built-in probe: 60 short texts of five kinds (`kind` and `text`), written for this package."""
    lines = files("mrt_plugin.evaluation").joinpath("general.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def probe_nll(model: Model, tokenizer: PreTrainedTokenizerBase) -> Measured:
    """Measure a model's loss on the probe's n texts, in nats with their predicted tokens, without a chat template."""
    encoded = [list(tokenizer(text["text"], verbose=False)["input_ids"]) for text in probe()]
    pairs = [Pair(ids, [False] + [True] * (len(ids) - 1)) for ids in encoded]
    check_ids(pairs, model)
    return Measured(-log_likelihoods(model, pairs), np.array([float(pair.trained_length) for pair in pairs]))


@dataclass(frozen=True)
class Score:
    """One metric of one task. `documents` has each document's score; None if the value is not their mean."""

    value: float
    stderr: float | None = None
    higher_is_better: bool = True
    documents: dict[tuple[str, int], float] | None = None
    """By task and number; a group of tasks has the documents of all."""


Scores = dict[str, dict[str, Score]]
"""By task and metric."""


def check_tasks(tasks: Sequence[str], include: str | Path | None = None) -> Any:
    """Check that the harness, with the task files in the folder `include`, has these tasks. Return its manager."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ImportError('Tasks need the lm-evaluation-harness: pip install "lm_eval[hf]", or leave out --lm-eval.')
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise ValueError(f"The lm-evaluation-harness has no task {', '.join(unknown)}: `lm-eval ls tasks` lists them.")
    return manager


def run_tasks(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    manager: Any,
    limit: int | None = None,
    *,
    chat: bool = False,
    run_code: bool = False,
) -> Scores:
    """Score a model on at most `limit` examples of each task.

    A group of tasks, such as mmlu, gives its own score, not those of its tasks. With `chat`, questions are put in the
    chat template. With `run_code`, tasks may run code that the model writes.
    """
    if run_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # the metric asks for it when it is loaded
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
            apply_chat_template=chat,
            confirm_run_unsafe_code=run_code,
            verbosity=logging.ERROR,
        )
    assert found is not None, "one process, so there is a result"
    scores: Scores = {}
    groups: dict[str, list[str]] = found.get("group_subtasks") or {}
    members = {task: _leaves(task, groups) for task in found["results"]}
    inside = {leaf for task, leaves in members.items() for leaf in leaves if leaf != task} | {
        below for task in found["results"] for below in groups.get(task, [])
    }
    for task, results in found["results"].items():
        if task in inside and task not in tasks:
            continue
        for name, value in results.items():
            metric, _, rule = name.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or "," not in name:
                continue
            error = results.get(f"{metric}_stderr,{rule}")
            documents = {
                (member, sample["doc_id"]): float(sample[metric])
                for member in members[task]
                for sample in found["samples"].get(member, [])
                if sample["filter"] == rule and isinstance(sample.get(metric), int | float)
            }
            total = sum(documents.values())
            is_mean = bool(documents) and math.isclose(total / len(documents), value, abs_tol=1e-9)
            scores.setdefault(task, {})[name.removesuffix(",none")] = Score(
                value=float(value),
                stderr=float(error) if isinstance(error, int | float) and math.isfinite(error) else None,
                higher_is_better=all((found["higher_is_better"].get(one) or {}).get(metric) for one in members[task]),
                documents=documents if is_mean else None,
            )
    return scores


def _leaves(task: str, groups: dict[str, list[str]]) -> list[str]:
    """Return the tasks of a group and of the groups in it, or a task itself."""
    below = groups.get(task) or []
    return [leaf for one in below for leaf in _leaves(one, groups)] if below else [task]


def points_of_nll(before: float, after: float) -> float:
    """Return the points lost on the probe: per cent of a token's probability (geometric mean), from nats per token."""
    return 100 * (1 - math.exp(before - after))


def verdict(points: float) -> str:
    return "significant" if points >= SIGNIFICANT else "flagged" if points >= FLAGGED else "kept"


def compare_probe(before: Measured | None, after: Measured | None, *, seed: int = 0) -> list[ProbeChange] | None:
    """Compare the probe over all texts and for each kind, by a bootstrap. None if the tokenizers differ."""
    if before is None or after is None or not np.array_equal(before.weights, after.weights):
        return None
    kinds = np.array([text["kind"] for text in probe()])
    rows = []
    for kind in ("all", *dict.fromkeys(kinds.tolist())):
        chosen = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
        texts = int(chosen.sum())
        one, other = (Measured(part.values[chosen], part.weights[chosen]) for part in (after, before))
        change, ends, _ = Bootstrap(texts, seed).difference(one, other)
        assert change is not None
        points = points_of_nll(0.0, change)
        interval = ends and [points_of_nll(0.0, end) for end in ends]
        rows.append(ProbeChange(kind, texts, other.value, one.value, points, interval, verdict(points)))
    return rows


def compare_tasks(before: Scores, after: Scores, *, seed: int = 0) -> list[TaskChange]:
    """Compare scores of tasks. Only scores between 0 and 1 that are better when higher have points.

    The interval is a bootstrap's over the documents. If a score is not their mean, it is 1.96 standard errors of
    independent runs.
    """
    rows = []
    for task, metric in ((task, metric) for task, metrics in after.items() for metric in metrics):
        new, old = after[task][metric], before.get(task, {}).get(metric)
        row = TaskChange(task, metric, old.value if old else None, new.value)
        if old is not None and new.higher_is_better and 0 <= old.value <= 1 and 0 <= new.value <= 1:
            points = 100 * (old.value - new.value)
            interval: Interval = None
            scores = [part.documents or {} for part in (old, new)]
            both = sorted(scores[0].keys() & scores[1].keys())
            if both:
                one, other = (Measured.mean(np.array([part[document] for document in both])) for part in scores)
                _, ends, _ = Bootstrap(len(both), seed).difference(one, other)
                interval = ends and [100 * end for end in ends]
            if interval is None and old.stderr is not None and new.stderr is not None:
                half = 196 * math.hypot(old.stderr, new.stderr)
                interval = [points - half, points + half]
            row = replace(row, points=points, interval=interval, verdict=verdict(points))
        rows.append(row)
    return rows
