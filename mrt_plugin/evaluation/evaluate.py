"""Evaluate several models on the same prompts, and compare each with a baseline."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.forgetting import FLAGGED, SIGNIFICANT, compare_probe, compare_tasks
from mrt_plugin.evaluation.reading import choose_outputs, next_step, notes
from mrt_plugin.evaluation.result import (
    CaseCounts,
    Difference,
    Evaluation,
    Forgetting,
    ModelResult,
    SampleCounts,
    Value,
    order,
    outcome,
)
from mrt_plugin.evaluation.samples import reference_means
from mrt_plugin.evaluation.subject import How, Subject, measure_subject, same_tokens, share_references
from mrt_plugin.extension import load_function
from mrt_plugin.models.named_model import NamedModel, check_names
from mrt_plugin.planning.paired import DRAWS, LEVEL, Bootstrap, holm
from mrt_plugin.planning.progress import Progress
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
) -> Evaluation:
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
    result.models[1].measures
    ```
    """
    check_names(models)
    if not cases or not models:
        raise ValueError("There is nothing to evaluate: give at least one prompt and one model.")
    names = [model.name for model in models]
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline={baseline!r} is none of the models: {', '.join(names)}.")
    if how.tasks and (how.endpoint is not None or not any(model.path for model in models)):
        what = "an endpoint or a file of samples cannot be scored on them."
        raise ValueError(f"Tasks need a model on this machine: {what}")
    if (how.scorer or how.checker) and not how.m and not any(model.pool for model in models):
        raise ValueError("A scorer or a checker needs samples: ask for some (--m), or give a file of them.")
    if isinstance(how.scorer, str) and ":" in how.scorer:
        load_function(how.scorer)  # fail on a wrong name before drawing samples
    subjects = [measure_subject(model, cases, how, progress) for model in models]
    left_out = share_references(subjects)
    if not any(subject.measured or subject.general.probe or subject.general.tasks for subject in subjects):
        raise ValueError("There is nothing to measure: ask for samples (--m), or give data with references.")
    base = subjects[0 if baseline is None else names.index(baseline)]
    boot = Bootstrap(len(cases), seed)
    counts = [len(case.references) for case in cases]
    spread = min(counts), float(np.median(counts)), max(counts)
    result = Evaluation(
        data=CaseCounts(data, len(cases), sum(count > 0 for count in counts), sum(counts), *spread, left_out),
        baseline=base.model.name,
        models=[_model(subject, boot) for subject in subjects],
        references=reference_means(cases, how.embedder),
        differences=differences(subjects, base, boot),
        forgetting=_forgetting(subjects, base, seed),
        outputs=choose_outputs(cases, subjects, outputs, seed),
        per_prompt=[
            {
                "id": case.id,
                "references": len(case.references),
                "models": {subject.model.name: _values(subject, place) for subject in subjects},
            }
            for place, case in enumerate(cases)
        ],
        intervals={"level": LEVEL, "draws": DRAWS, "seed": seed},
        points={"flagged": FLAGGED, "significant": SIGNIFICANT},
        how={
            "m": how.m,
            "settings": how.settings.as_dict(),
            "embedder": how.embedder and how.embedder.name,
            "scorer": how.scorer and scorer_name(how.scorer),
            "checker": how.checker and how.checker.name,
            "load_in_4bit": how.local.load_in_4bit,
        },
    )
    result.notes = list(notes(cases, subjects, base, result))
    result.next = next_step(result)
    return result


def _model(subject: Subject, boot: Bootstrap) -> ModelResult:
    model, samples = subject.model, subject.samples
    counted = None
    if samples:
        counts, drawn = [len(some) for some in samples], [one for some in samples for one in some]
        cut_off, empty = sum(one.cut_off for one in drawn), sum(not one.text.strip() for one in drawn)
        counted = SampleCounts(sum(counts), min(counts), max(counts), cut_off, empty)
    measures = [
        Value(name, m, measured.value, boot.interval(measured), int(measured.known.sum()))
        for (name, m), measured in subject.ordered
    ]
    return ModelResult(model.name, model.path, model.adapter, model.pool, counted, measures)


def differences(subjects: Sequence[Subject], base: Subject, boot: Bootstrap) -> list[Difference]:
    """Compute each model minus the baseline, on the prompts on which both were measured.

    Outcomes are corrected for the number of comparisons. Intervals are not corrected.
    """
    rows: list[Difference] = []
    for subject in subjects:
        if subject is base:
            continue
        for name, m in sorted(set(subject.measured) & set(base.measured), key=order):
            if name == "nll_per_token" and not same_tokens(subject, base):
                continue
            one, other = subject.measured[name, m], base.measured[name, m]
            value, interval, prompts = boot.difference(one, other)
            scaled = None
            if value is not None and interval is not None:
                unit = (interval[1] - interval[0]) / 2 or 1.0
                scaled = [interval[0] / unit, value / unit, interval[1] / unit]
            chance = boot.chance(one, other)
            rows.append(Difference(subject.model.name, name, m, value, interval, scaled, prompts, chance))
    corrected = iter(holm([row.p for row in rows if row.p is not None]))
    rows = [row if row.p is None else replace(row, p_corrected=next(corrected)) for row in rows]
    return [replace(row, outcome=outcome(row.measure, row.interval, row.p_corrected)) for row in rows]


def _forgetting(subjects: Sequence[Subject], base: Subject, seed: int) -> list[Forgetting]:
    """Compare each model with itself, its adapter off, or with the baseline if it has no adapter."""
    found = []
    for subject in subjects:
        name, before, after = str(subject.model.path), subject.before, subject.general
        if before is None:
            name, before = base.model.name, base.general
        if before is after:
            continue
        probe = compare_probe(before.probe, after.probe, seed=seed)
        tasks = compare_tasks(before.tasks, after.tasks, seed=seed)
        if probe is not None or tasks:
            found.append(Forgetting(subject.model.name, name, probe, tasks))
    return found


def _values(subject: Subject, place: int) -> dict[str, float | None]:
    """Return the values of one prompt, from which all results are computed."""
    values = {}
    for (name, m), measured in subject.ordered:
        found = float(measured.values[place] / (measured.weights[place] or 1))
        values[name if m is None else f"{name}@{m}"] = found if math.isfinite(found) else None
    return values
