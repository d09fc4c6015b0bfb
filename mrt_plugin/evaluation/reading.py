"""What a person reads of an evaluation: some outputs, notes on the numbers, and the recommended next step."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.result import Evaluation, Key, Outputs, ProbeChange, TaskChange, label
from mrt_plugin.evaluation.subject import Subject, same_tokens
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import prompt_text
from mrt_plugin.planning.paired import FEWEST, LEVEL

FEW = 30
"""Number of prompts below which intervals are too wide to decide much."""
REFERENCES_SHOWN = 3
"""Number of references shown next to a prompt's outputs."""


def choose_outputs(cases: Sequence[Case], subjects: Sequence[Subject], outputs: int, seed: int) -> list[Outputs]:
    """Choose about `outputs` outputs over all models together: the first draws of every model on some prompts.

    The prompts are drawn by a hash of (seed, id), among those for which every sampled model has samples.
    """
    sampled = [(subject, subject.samples) for subject in subjects if subject.samples is not None]
    able = [place for place in range(len(cases)) if all(samples[place] for _, samples in sampled)]
    if not sampled or not able or not outputs:
        return []
    each = math.ceil(outputs / len(sampled))
    able.sort(key=lambda place: digest(b"read", str(seed).encode(), cases[place].id.encode()))
    able = able[:each]
    draws = math.ceil(each / len(able))
    found = []
    for place in able:
        models = {subject.model.name: samples[place][:draws] for subject, samples in sampled}
        texts = cases[place].texts
        shown, more = texts[:REFERENCES_SHOWN], max(0, len(texts) - REFERENCES_SHOWN)
        found.append(Outputs(cases[place].id, prompt_text(cases[place].prompt), shown, more, models))
    return found


def notes(cases: Sequence[Case], subjects: Sequence[Subject], base: Subject, result: Evaluation) -> Iterator[str]:
    """Yield notes that are needed to read the numbers correctly, starting with what was forgotten."""
    yield from (_dropped(row.model, row.before, part) for row in result.forgetting for part in row.losses)
    yield from (note for subject in subjects for note in subject.notes)
    counted = [(model.name, model.samples) for model in result.models if model.samples]
    for name, counts in counted:
        if counts.cut_off:
            yield (
                f"{name}: {counts.cut_off:,} of {counts.draws:,} samples were cut off before the model ended them, "
                "and are measured as they are. Raise --max-tokens."
            )
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


def _about_model(subject: Subject, base: Subject, references: bool) -> Iterator[str]:
    name, other = subject.model.name, base.model.name
    key: Key = ("nll_per_token", None)
    if subject.model.path is None:
        yield f"{name} has only samples: no held-out NLL."
    elif key not in subject.measured and references:
        yield f"{name}: no held-out NLL, since an endpoint does not give it."
    if key in subject.measured and key in base.measured and not same_tokens(subject, base):
        what = "compare the NLL per response, not per token."
        yield f"{name} and {other} read the references as different tokens: {what}"
    mine, theirs = subject.general.probe, base.general.probe
    if subject.before is None and mine and theirs and not np.array_equal(mine.weights, theirs.weights):
        yield f"{name} has another tokenizer than {other}: no before and after on the probe."


def _beyond_chance(part: ProbeChange | TaskChange) -> bool:
    return part.interval is None or part.interval[0] > 0


def _dropped(model: str, before: str | None, part: ProbeChange | TaskChange) -> str:
    where = "the general probe" if isinstance(part, ProbeChange) else f"{part.task} ({part.metric})"
    word = "a significant drop" if part.verdict == "significant" else "a drop"
    chance = "" if _beyond_chance(part) else " It may be chance: the interval holds 0."
    return f"{model}: {word} of {part.points:.1f} points on {where}, against {before}.{chance}"


def next_step(result: Evaluation) -> str:
    """Return the recommended next step."""
    data, model = result.data, result.models[0]
    lost = next((row.model for row in result.forgetting if any(map(_beyond_chance, row.losses))), None)
    worse = [row.model for row in result.differences if row.outcome == "worse" and row.measure == "coverage"]
    if lost is not None:
        return (
            f"Next: {lost} lost general ability: mix 5 to 10 % general data into its training (mrt select "
            "--proportion), or train fewer steps, and evaluate again."
        )
    if len(result.models) == 1:
        base = model.path if model.adapter else "BASE"
        itself = "+".join(part for part in (model.path, model.adapter) if part)
        given = f"--model {itself}" if itself else f"--pool {model.name}={model.pool}"
        return (
            f"Next: compare it with the model before training: mrt evaluate --model {base} {given} --data {data.name}"
        )
    if data.prompts < FEW:
        return f"Next: evaluate on more held-out prompts: {data.prompts} decide little."
    if worse:
        return (
            f"Next: {worse[0]} covers the references less than {result.baseline}: ask whether more responses "
            f"per prompt would pay: mrt plan POOL --model {model.path or 'PATH'}"
        )
    return "Next: read the outputs beside their references before you trust the numbers: --report evaluation.html"
