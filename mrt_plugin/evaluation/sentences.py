"""Write an evaluation's sentences: notes on how to read its numbers, and the recommended next step."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.measures import label
from mrt_plugin.evaluation.subject import Subject, same_tokens
from mrt_plugin.planning.paired import FEWEST, LEVEL

FEW = 30
"""Number of prompts below which intervals are too wide to decide much."""


def notes(cases: Sequence[Case], subjects: Sequence[Subject], first: int, result: dict[str, Any]) -> list[str]:
    """Return notes that are needed to read the numbers correctly, starting with what was forgotten."""
    return [
        *(_dropped(row, part) for row in result["forgetting"] for part in _losses(row)),
        *(note for subject in subjects for note in subject.notes),
        *_about_samples(subjects, result),
        *_about_columns(result),
        *_about_references(cases, subjects),
        *(note for subject in subjects for note in _about_model(subject, subjects[first], cases)),
        *_about_intervals(cases, result),
    ]


def _about_samples(subjects: Sequence[Subject], result: dict[str, Any]) -> list[str]:
    said = []
    for model in result["models"]:
        counts = model["samples"]
        if counts and counts["cut_off"]:
            said.append(
                f"{model['name']}: {counts['cut_off']:,} of {counts['draws']:,} samples were cut off before the model "
                "ended them, and are measured as they are. Raise --max-tokens."
            )
        if counts and counts["least"] < counts["most"]:
            said.append(
                f"{model['name']}: prompts have {counts['least']} to {counts['most']} samples; a prompt with fewer "
                "than M has no value at M."
            )
    sampled = [subject.samples for subject in subjects if subject.samples is not None]
    if sampled and all(len(one.texts) < 2 for samples in sampled for one in samples):
        said.append("Diversity needs at least 2 samples per prompt (--m), and is left out.")
    return said


def _about_columns(result: dict[str, Any]) -> list[str]:
    """Report measures that were taken on different prompts for different models."""
    counts: dict[tuple[str, int | None], set[int]] = {}
    for model in result["models"]:
        for row in model["measures"]:
            counts.setdefault((row["measure"], row["m"]), set()).add(row["prompts"])
    apart = [label(*key) for key, found in counts.items() if len(found) > 1]
    if not apart:
        return []
    return [f"Not all models were measured on the same prompts in {', '.join(apart)}: compare the differences."]


def _about_references(cases: Sequence[Case], subjects: Sequence[Subject]) -> list[str]:
    said = []
    without = sum(not case.references for case in cases)
    if without:
        what = "NLL, coverage and alignment"
        if without == len(cases):
            said.append(f"No prompt has references, which {what} need: left out.")
        else:
            said.append(f"{without:,} of {len(cases):,} prompts have no references: {what} leave them out.")
    right = next((subject.right for subject in subjects if subject.right is not None), [])
    unchecked = sum(None in row for row in right)
    if unchecked:
        said.append(f"{unchecked:,} prompts give the checker nothing to compare with, and are left out of pass@M.")
    return said


def _about_model(subject: Subject, base: Subject, cases: Sequence[Case]) -> list[str]:
    name, said = subject.model.name, []
    if subject.model.path is None:
        said.append(f"{name} is known by its samples alone: no held-out NLL.")
    elif subject.nll is None and any(case.references for case in cases):
        said.append(f"{name}: no held-out NLL, since an endpoint does not give it.")
    if subject is base:
        return said
    if subject.nll is not None and base.nll is not None and not same_tokens(subject, base):
        said.append(
            f"{name} and {base.model.name} read the references as different tokens: compare the NLL per response, not "
            "per token."
        )
    probes = None if subject.base_probe is not None else (subject.probe, base.probe)
    if probes and probes[0] and probes[1] and not np.array_equal(probes[0].tokens, probes[1].tokens):
        said.append(f"{name} has another tokenizer than {base.model.name}: no before and after on the probe.")
    return said


def _about_intervals(cases: Sequence[Case], result: dict[str, Any]) -> list[str]:
    said = []
    if len(cases) < FEWEST:
        said.append(f"Fewer than {FEWEST} prompts have no intervals, and so no verdict.")
    elif len(cases) < FEW:
        said.append(f"{len(cases)} prompts are few: the intervals are wide.")
    rows = [row for row in result["differences"] if row["p"] is not None]
    alone = sum(row["outcome"] == "unclear" and not row["interval"][0] <= 0 <= row["interval"][1] for row in rows)
    if len(rows) > 1:
        line = (
            f"Better, worse and different are corrected for {len(rows)} comparisons (Holm): by chance, any of them "
            f"stands in at most about {1 - LEVEL:.0%} of evaluations. Intervals are those of each comparison alone"
        )
        said.append(f"{line}; {alone} exclude 0 and are still unclear." if alone else f"{line}.")
    return said


def _losses(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was flagged: the probe over all its texts, and tasks."""
    probe = [part for part in row["probe"] or [] if part["kind"] == "all"]
    return [part for part in [*probe, *row["tasks"]] if part["verdict"] in ("flagged", "significant")]


def _beyond_chance(part: dict[str, Any]) -> bool:
    return part["interval"] is None or part["interval"][0] > 0


def _dropped(row: dict[str, Any], part: dict[str, Any]) -> str:
    where = "the general probe" if "kind" in part else f"{part['task']} ({part['metric']})"
    word = "a significant drop" if part["verdict"] == "significant" else "a drop"
    chance = "" if _beyond_chance(part) else " It may be chance: the interval holds 0."
    return f"{row['model']}: {word} of {part['points']:.1f} points on {where}, against {row['before']}.{chance}"


def next_step(result: dict[str, Any]) -> str:
    """Return the recommended next step."""
    data, models = result["data"], result["models"]
    lost = next((row for row in result["forgetting"] if any(map(_beyond_chance, _losses(row)))), None)
    worse = next(
        (row for row in result["differences"] if row["outcome"] == "worse" and row["measure"] == "coverage"), None
    )
    if lost is not None:
        return (
            f"Next: {lost['model']} lost general ability: mix 5 to 10 % general data into its training (mrt select "
            "--proportion), or train fewer steps, and evaluate again."
        )
    if len(models) == 1:
        model = models[0]
        base = model["path"] if model["adapter"] else "BASE"
        itself = "+".join(part for part in (model["path"], model["adapter"]) if part)
        given = f"--model {itself}" if itself else f"--pool {model['name']}={model['pool']}"
        return (
            f"Next: put it beside what it was trained from: mrt evaluate --model {base} {given} --data {data['name']}"
        )
    if data["prompts"] < FEW:
        return f"Next: evaluate on more held-out prompts: {data['prompts']} decide little."
    if worse is not None:
        return (
            f"Next: {worse['model']} covers the references less than {result['baseline']}: ask whether more responses "
            f"per prompt would pay: mrt plan POOL --model {models[0]['path'] or 'PATH'}"
        )
    return (
        "Next: read the outputs beside their references before you trust the numbers: --report evaluation.html lays "
        "them out."
    )
