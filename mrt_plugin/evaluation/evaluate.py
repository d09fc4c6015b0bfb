"""Evaluate several models on the same prompts, compare each with a baseline, and say what to read of the numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.findings import FEW, beyond_chance, next_step
from mrt_plugin.evaluation.forgetting import FLAGGED, SIGNIFICANT, compare_probe, compare_tasks
from mrt_plugin.evaluation.judging import judge_subjects, opponents
from mrt_plugin.evaluation.result import (
    CaseCounts,
    Difference,
    Evaluation,
    Forgetting,
    Key,
    ModelResult,
    Outputs,
    ProbeChange,
    RightAnswer,
    SampleCounts,
    TaskChange,
    TruthExample,
    Value,
    WinRate,
    label,
    order,
    outcome,
)
from mrt_plugin.evaluation.subject import How, Subject, measure_subject, reference_means, same_tokens, share_references
from mrt_plugin.evaluation.truth import Truth, read_truth
from mrt_plugin.extension import load_function
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import prompt_text, response_text
from mrt_plugin.models.named_model import NamedModel, check_names
from mrt_plugin.planning.paired import DRAWS, FEWEST, LEVEL, Bootstrap, holm
from mrt_plugin.planning.progress import Progress
from mrt_plugin.scoring.judge import is_judge
from mrt_plugin.scoring.scores import scorer_name

REFERENCES_SHOWN = 3
"""Number of references shown next to a prompt's outputs."""


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
        raise ValueError("Tasks need a model on this machine: not an endpoint, nor only a file of samples.")
    if how.truth is not None and (how.endpoint is not None or not any(model.path for model in models)):
        raise ValueError("A truth needs a model's probabilities: not an endpoint, nor only a file of samples.")
    if (how.scorer or how.checker or how.judge) and not how.m and not any(model.pool for model in models):
        raise ValueError("A scorer, a checker or a judge needs samples: ask for some (--m), or give a file of them.")
    if how.judge is not None and len(models) == 1:
        opponents(cases, {names[0]: []}, names[0])  # fail before drawing samples
    if isinstance(how.scorer, str) and ":" in how.scorer and not is_judge(how.scorer):
        load_function(how.scorer)  # fail on a wrong name before drawing samples
    truths = [] if how.truth is None else read_truth(how.truth, [case.prompt for case in cases])
    subjects = [measure_subject(model, cases, how, progress, truths) for model in models]
    left_out = share_references(subjects)
    if not any(subject.measured or subject.general.probe or subject.general.tasks for subject in subjects):
        raise ValueError("There is nothing to measure: ask for samples (--m), or give data with references.")
    base = subjects[0 if baseline is None else names.index(baseline)]
    boot = Bootstrap(len(cases), seed)
    judged: list[WinRate] = []
    if how.judge is not None:
        limits: dict[str, Any] = {"samples": how.judge_samples, "folder": how.folder, "progress": progress}
        judged = judge_subjects(how.judge, cases, subjects, base.model.name, boot, **limits)
    counts = [len(case.references) for case in cases]
    spread = min(counts), float(np.median(counts)), max(counts)
    result = Evaluation(
        data=CaseCounts(data, len(cases), sum(count > 0 for count in counts), sum(counts), *spread, left_out),
        baseline=base.model.name,
        models=[_model(subject, boot) for subject in subjects],
        references=reference_means(cases, how.embedder),
        differences=differences(subjects, base, boot),
        forgetting=[row for subject in subjects if (row := _forgetting(subject, base, seed)) is not None],
        outputs=choose_outputs(cases, subjects, outputs, seed),
        example=choose_example(truths, subjects, base),
        per_prompt=[
            {
                "id": case.id,
                "references": len(case.references),
                "models": {subject.model.name: _values(subject, place) for subject in subjects},
            }
            for place, case in enumerate(cases)
        ],
        judged=judged,
        intervals={"level": LEVEL, "draws": DRAWS, "seed": seed},
        points={"flagged": FLAGGED, "significant": SIGNIFICANT},
        how={
            "m": how.m,
            "folder": str(how.folder),
            "endpoint": how.address,
            "settings": how.settings.as_dict(),
            "embedder": how.embedder and how.embedder.name,
            "scorer": how.scorer and scorer_name(how.scorer),
            "checker": how.checker and how.checker.name,
            "judge": how.judge and {"name": how.judge.name, "samples": how.judge_samples},
            "truth": how.truth and str(how.truth),
            "load_in_4bit": how.local.load_in_4bit,
        },
    )
    result.notes = list(notes(cases, subjects, base, result))
    result.next = str(next_step(result))
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


def _forgetting(subject: Subject, base: Subject, seed: int) -> Forgetting | None:
    """Compare a model with itself, its adapter off, or with the baseline if it has no adapter."""
    name, before, after = str(subject.model.path), subject.before, subject.general
    if before is None:
        name, before = base.model.name, base.general
    if before is after:
        return None
    probe = compare_probe(before.probe, after.probe, seed=seed)
    tasks = compare_tasks(before.tasks, after.tasks, seed=seed)
    return Forgetting(subject.model.name, name, probe, tasks) if probe is not None or tasks else None


def _values(subject: Subject, place: int) -> dict[str, float | None]:
    """Return the values of one prompt, from which all results are computed."""
    values = {}
    for (name, m), measured in subject.ordered:
        found = float(measured.values[place] / (measured.weights[place] or 1))
        values[name if m is None else f"{name}@{m}"] = found if math.isfinite(found) else None
    return values


def choose_outputs(cases: Sequence[Case], subjects: Sequence[Subject], outputs: int, seed: int) -> list[Outputs]:
    """Choose about `outputs` outputs over all models together: the first draws of every model on some prompts.

    The prompts are drawn by a hash of (seed, id), among those for which every sampled model has samples.
    """
    sampled = [(subject, subject.samples) for subject in subjects if subject.samples is not None]
    able = [place for place in range(len(cases)) if all(samples[place] for _, samples in sampled)]
    if not sampled or not able or not outputs:
        return []
    each = math.ceil(outputs / len(sampled))
    able = sorted(able, key=lambda place: digest(b"read", str(seed).encode(), cases[place].id.encode()))[:each]
    draws = math.ceil(each / len(able))
    found = []
    for place in able:
        models = {subject.model.name: samples[place][:draws] for subject, samples in sampled}
        texts = cases[place].texts
        shown, more = texts[:REFERENCES_SHOWN], max(0, len(texts) - REFERENCES_SHOWN)
        found.append(Outputs(cases[place].id, prompt_text(cases[place].prompt), shown, more, models))
    return found


def choose_example(truths: Sequence[Truth], subjects: Sequence[Subject], base: Subject) -> TruthExample | None:
    """Choose the prompt in the middle: its KL of the last model minus that of the baseline is the median."""
    known = [(subject, subject.modes) for subject in subjects if subject.modes is not None]
    if not known:
        return None
    last, first = known[-1][0].measured["truth_kl", None], base.measured.get(("truth_kl", None))
    change = last.values - (0 if first is None else first.values)
    middle = int(np.argsort(change, kind="stable")[len(truths) // 2])
    truth = truths[middle]
    answers = []
    for place in np.argsort(-np.array(truth.probabilities), kind="stable"):
        text = response_text(truth.modes[place])
        chances = {subject.model.name: float(np.exp(scores[middle][place])) for subject, scores in known}
        draws = {
            subject.model.name: sum(one.text == text for one in subject.samples[middle])
            for subject, _ in known
            if subject.samples is not None
        }
        answers.append(RightAnswer(text, truth.probabilities[place], chances, draws))
    return TruthExample(prompt_text(truth.prompt), answers)


def notes(cases: Sequence[Case], subjects: Sequence[Subject], base: Subject, result: Evaluation) -> Iterator[str]:
    """Yield notes that are needed to read the numbers correctly, starting with what was forgotten."""
    yield from (_dropped(row.model, row.before, part) for row in result.forgetting for part in row.losses)
    yield from (note for subject in subjects for note in subject.notes)
    counted = [(model.name, model.samples) for model in result.models if model.samples]
    for name, counts in counted:
        if counts.cut_off:
            cut_off = f"{counts.cut_off:,} of {counts.draws:,} samples were cut off, and are measured as they are"
            yield f"{name}: {cut_off}. Raise --max-tokens."
        if counts.least < counts.most:
            spread = f"{counts.least} to {counts.most} samples"
            yield f"{name}: prompts have {spread}; a prompt with fewer than M has no value at M."
    if counted and max(counts.most for _, counts in counted) < 2:
        yield "Diversity needs at least 2 samples per prompt (--m), and is left out."
    prompts: dict[Key, set[int]] = {}
    for row in (row for model in result.models for row in model.measures):
        prompts.setdefault((row.measure, row.m), set()).add(row.prompts)
    apart = ", ".join(label(*key) for key, numbers in prompts.items() if len(numbers) > 1)
    if apart:
        yield f"Not all models were measured on the same prompts in {apart}: compare the differences."
    without, what = sum(not case.references for case in cases), "NLL, coverage and alignment"
    if without == len(cases):
        yield f"No prompt has references, which {what} need: left out."
    elif without:
        yield f"{without:,} of {len(cases):,} prompts have no references: {what} leave them out."
    checked = next((subject.samples for subject in subjects if subject.samples is not None), [])
    unchecked = sum(any(one.right is None for one in some) for some in checked)
    if unchecked and result.how["checker"]:
        yield f"{unchecked:,} prompts give the checker nothing to compare with, and are left out of pass@M."
    yield from (note for row in result.judged for note in _about_judging(row))
    for subject in subjects:
        yield from _about_model(subject, base, without < len(cases))
    if len(cases) < FEWEST:
        yield f"Fewer than {FEWEST} prompts have no intervals, and so no verdict."
    elif len(cases) < FEW:
        yield f"{len(cases)} prompts are few: the intervals are wide."
    tested = [row for row in result.differences if row.p is not None]
    ends = [row.interval for row in tested if row.outcome == "unclear" and row.interval is not None]
    alone = sum(not low <= 0 <= high for low, high in ends)
    if len(tested) > 1:
        yield (
            f"Better, worse and different are corrected for {len(tested)} comparisons (Holm): by chance, any of them "
            f"stands in at most about {1 - LEVEL:.0%} of evaluations. Intervals are those of each comparison alone"
            + (f"; {alone} exclude 0 and are still unclear." if alone else ".")
        )


def _about_judging(row: WinRate) -> Iterator[str]:
    if row.unreadable:
        left = f"{row.unreadable:,} of {row.pairs + row.unreadable:,} pairs are left out"
        yield f"{row.model}: {left}, since the judge's answer in one of the orders gives no verdict."
    if row.position_bias and row.first_shown is not None:
        shown = f"{row.first_shown:.0%} of its verdicts are for the response shown first"
        yield f"{row.model}: the judge has a position bias: {shown}. Both orders are asked, so it is no one's gain."
    if row.rate is not None and row.length_controlled is None and row.length_difference:
        side = "longer" if row.length_difference > 0 else "shorter"
        what = f"its samples are {side} on every prompt, so length and quality cannot be told apart"
        yield f"{row.model}: no length-controlled win rate: {what}."


def _about_model(subject: Subject, base: Subject, references: bool) -> Iterator[str]:
    name, other = subject.model.name, base.model.name
    key: Key = ("nll_per_token", None)
    if subject.model.path is None:
        yield f"{name} has only samples: no held-out NLL."
    elif key not in subject.measured and references:
        yield f"{name}: no held-out NLL, since an endpoint does not give it."
    if key in subject.measured and key in base.measured and not same_tokens(subject, base):
        yield f"{name} and {other} split the references into different tokens: compare the NLL per response."
    mine, theirs = subject.general.probe, base.general.probe
    if subject.before is None and mine and theirs and not np.array_equal(mine.weights, theirs.weights):
        yield f"{name} has another tokenizer than {other}: no before and after on the probe."


def _dropped(model: str, before: str | None, part: ProbeChange | TaskChange) -> str:
    where = "the general probe" if isinstance(part, ProbeChange) else f"{part.task} ({part.metric})"
    word = "a significant drop" if part.verdict == "significant" else "a drop"
    chance = "" if beyond_chance(part) else " It may be chance: the interval holds 0."
    return f"{model}: {word} of {part.points:.1f} points on {where}, against {before}.{chance}"
