"""Evaluate several models on the same prompts, and return one JSON-ready result."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.closeness import closeness
from mrt_plugin.evaluation.forgetting import FLAGGED, SIGNIFICANT, compare_probe, compare_tasks
from mrt_plugin.evaluation.measures import MEASURES, outcome
from mrt_plugin.evaluation.reading import lay_out
from mrt_plugin.evaluation.sentences import next_step, notes
from mrt_plugin.evaluation.subject import How, Key, Progress, Subject, measure_subject, same_tokens, share_references
from mrt_plugin.extension import load_function
from mrt_plugin.groups.text import units
from mrt_plugin.models.named_model import NamedModel, check_names
from mrt_plugin.planning.paired import DRAWS, LEVEL, Bootstrap, holm
from mrt_plugin.scoring.scores import scorer_name


def evaluate(
    cases: Sequence[Case],
    models: Sequence[NamedModel],
    how: How,
    *,
    baseline: str | None = None,
    outputs: int = 30,
    seed: int = 0,
    data: str = "the data",
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Measure models on the same prompts and compare each with the first, or with `baseline`.

    Args:
        cases: prompts, with references if any.
        models: at least one model.
        how: the measures and their settings.
        baseline: name of the model that the others are compared with.
        outputs: number of outputs to show for reading, over all models together.
        seed: seed of the bootstrap and of the choice of prompts to show.
        data: name of the data.
        progress: progress callback.

    Returns:
        JSON-ready: `data`, `models` (with `measures`), `references`, `differences`, `forgetting`, `outputs`,
        `per_prompt`, `notes` (sentences) and `next` (the recommended next step).

    Raises:
        ValueError: if there is nothing to measure, or a model does not match its description.
        Unfinished, EndpointError: if some samples could not be drawn. The same call resumes from the samples drawn.

    Example:

    ```python
    from pathlib import Path

    from mrt_plugin import evaluate
    from mrt_plugin.evaluation import How, read_cases
    from mrt_plugin.models import parse_models

    models = parse_models(["path/to/base", "path/to/base+outputs/run"])
    result = evaluate(read_cases("held_out.jsonl"), models, How(Path("evaluation"), m=8))
    result["models"][1]["measures"]
    ```
    """
    check_names(models)
    if not cases or not models:
        raise ValueError("There is nothing to evaluate: give at least one prompt and one model.")
    names = [model.name for model in models]
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline={baseline!r} is none of the models: {', '.join(names)}.")
    if how.tasks and (how.endpoint is not None or not any(model.path for model in models)):
        raise ValueError(
            "Tasks need a model on this machine: an endpoint or a file of samples cannot be scored on them."
        )
    if (how.scorer or how.checker) and not how.m and not any(model.pool for model in models):
        raise ValueError("A scorer or a checker needs samples: ask for some (--m), or give a file of them.")
    if isinstance(how.scorer, str) and ":" in how.scorer:
        load_function(how.scorer)  # fail on a wrong name before drawing samples
    first = names.index(baseline) if baseline is not None else 0
    subjects = [measure_subject(model, cases, how, progress) for model in models]
    left_out = share_references(subjects)
    if not any(subject.measured or subject.probe or subject.tasks for subject in subjects):
        raise ValueError("There is nothing to measure: ask for samples (--m), or give data with references.")
    boot = Bootstrap(len(cases), seed)
    result: dict[str, Any] = {
        "data": _data(cases, data) | {"references_left_out": left_out},
        "baseline": names[first],
        "models": [_model(subject, boot) for subject in subjects],
        "references": _references(cases, how),
        "differences": differences(subjects, first, boot),
        "forgetting": _forgetting(subjects, first, seed),
        "outputs": lay_out(cases, subjects, outputs, seed),
        "per_prompt": _per_prompt(cases, subjects),
        "intervals": {"level": LEVEL, "draws": DRAWS, "seed": seed},
        "points": {"flagged": FLAGGED, "significant": SIGNIFICANT},
        "how": {
            "m": how.m,
            "settings": how.settings.as_dict(),
            "embedder": None if how.embedder is None else how.embedder.name,
            "scorer": None if how.scorer is None else scorer_name(how.scorer),
            "checker": None if how.checker is None else how.checker.name,
            "load_in_4bit": how.load_in_4bit,
        },
    }
    result["notes"] = notes(cases, subjects, first, result)
    result["next"] = next_step(result)
    return result


def _data(cases: Sequence[Case], name: str) -> dict[str, Any]:
    counts = [len(case.references) for case in cases]
    return {
        "name": name,
        "prompts": len(cases),
        "with_references": sum(count > 0 for count in counts),
        "references": sum(counts),
        "references_least": min(counts),
        "references_median": float(np.median(counts)),
        "references_most": max(counts),
    }


def _model(subject: Subject, boot: Bootstrap) -> dict[str, Any]:
    model, samples = subject.model, subject.samples
    found: dict[str, Any] = {
        "name": model.name,
        "path": model.path,
        "adapter": model.adapter,
        "pool": model.pool,
        "samples": None,
        "measures": [
            {
                "measure": name,
                "m": m,
                "value": measured.value,
                "interval": boot.interval(measured),
                "prompts": int(measured.known.sum()),
            }
            for (name, m), measured in sorted(subject.measured.items(), key=lambda item: _order(item[0]))
        ],
    }
    if samples is not None:
        counts = [len(one.texts) for one in samples]
        found["samples"] = {
            "draws": sum(counts),
            "least": min(counts),
            "most": max(counts),
            "cut_off": sum(sum(one.cut_off) for one in samples),
            "empty": sum(not text.strip() for one in samples for text in one.texts),
        }
    return found


def _references(cases: Sequence[Case], how: How) -> dict[str, Any] | None:
    """Measure the references against each other, as a target for the samples."""
    if not any(case.references for case in cases):
        return None
    lengths = [np.mean([len(units(text)) for text in case.texts]) for case in cases if case.references]
    found = {"length": float(np.mean(lengths)), "coverage": None, "diversity": None}
    several = [case for case in cases if len(case.references) > 1]
    if how.embedder is not None and several:
        near = [closeness(case.texts, [], how.embedder) for case in several]
        found["coverage"] = float(np.mean([one.reference_coverage for one in near]))
        found["diversity"] = float(np.mean([one.reference_diversity for one in near]))
    return found


def differences(subjects: Sequence[Subject], first: int, boot: Bootstrap) -> list[dict[str, Any]]:
    """Compute each model minus the baseline, on the prompts on which both were measured.

    Outcomes are corrected for the number of comparisons. Intervals are not corrected.
    """
    base = subjects[first]
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        if subject is base:
            continue
        shared = set(subject.measured) & set(base.measured)
        for name, m in sorted(shared, key=_order):
            if name == "nll_per_token" and not same_tokens(subject, base):
                continue
            value, interval, prompts = boot.difference(subject.measured[name, m], base.measured[name, m])
            rows.append(
                {
                    "model": subject.model.name,
                    "measure": name,
                    "m": m,
                    "difference": value,
                    "interval": interval,
                    "scaled": _scaled(value, interval),
                    "prompts": prompts,
                    "p": boot.chance(subject.measured[name, m], base.measured[name, m]),
                    "p_corrected": None,
                }
            )
    tested = [row for row in rows if row["p"] is not None]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_corrected"] = corrected
    return [row | {"outcome": outcome(row["measure"], row["interval"], row["p_corrected"])} for row in rows]


def _scaled(value: float | None, interval: list[float] | None) -> list[float] | None:
    """Return low end, value and high end in units of half the interval, for a plot of all measures."""
    if value is None or interval is None:
        return None
    unit = (interval[1] - interval[0]) / 2 or 1.0
    return [interval[0] / unit, value / unit, interval[1] / unit]


def _forgetting(subjects: Sequence[Subject], first: int, seed: int) -> list[dict[str, Any]]:
    """Compare each model before and after fine-tuning.

    "Before" is the model with its adapter off. For a model without an adapter, it is the baseline.
    """
    base = subjects[first]
    found = []
    for subject in subjects:
        own = subject.base_probe is not None or bool(subject.base_tasks)
        if not own and subject is base:
            continue
        before = subject.model.path if own else base.model.name
        before_probe = subject.base_probe if own else base.probe
        before_tasks = subject.base_tasks if own else base.tasks
        probe = None
        if subject.probe is not None and before_probe is not None:
            probe = compare_probe(before_probe, subject.probe, seed=seed)
        tasks = compare_tasks(before_tasks, subject.tasks, seed=seed)
        if probe is not None or tasks:
            found.append({"model": subject.model.name, "before": before, "probe": probe, "tasks": tasks})
    return found


def _per_prompt(cases: Sequence[Case], subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Return the values per prompt that all results are computed from."""
    rows = []
    for place, case in enumerate(cases):
        row: dict[str, Any] = {"id": case.id, "references": len(case.references), "models": {}}
        for subject in subjects:
            row["models"][subject.model.name] = {
                name if m is None else f"{name}@{m}": _finite(measured.values[place] / (measured.weights[place] or 1))
                for (name, m), measured in sorted(subject.measured.items(), key=lambda item: _order(item[0]))
            }
        rows.append(row)
    return rows


def _order(key: Key) -> tuple[int, int]:
    return list(MEASURES).index(key[0]), key[1] or 0


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
