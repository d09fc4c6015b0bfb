"""Say what an evaluation found: in one sentence, as differences in the reader's direction, and what to do next."""

import shlex
from collections.abc import Callable, Sequence

from mrt_plugin.evaluation.result import (
    MEASURES,
    Difference,
    Evaluation,
    Forgetting,
    Interval,
    Key,
    ModelResult,
    ProbeChange,
    TaskChange,
    WinRate,
    label,
)
from mrt_plugin.planning.paired import FEWEST
from mrt_plugin.report import NextStep, Strip

FEW = 30
"""Number of prompts below which intervals are too wide to decide much."""
FIRST = ("truth_kl", "pass", "nll_per_token", "nll_per_response", "coverage", "best_reward", "reward", "alignment")
"""Measures in the order in which a headline prefers them."""
WORDS = {"length": ("shorter", "longer"), "diversity": ("less", "more")}
"""What lies left and right of zero for measures that are neither better nor worse."""


def number(value: float | None) -> str:
    """Format a number with three significant digits, four from 1 upwards, and one decimal from 100 upwards."""
    if value is None:
        return ""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def interval_text(ends: Interval, form: Callable[[float], str]) -> str:
    return "" if ends is None else f"{form(ends[0])} to {form(ends[1])}"


def change_text(value: float, ends: Interval, unit: str = "") -> str:
    """Say a difference in words, with its interval.

    >>> change_text(-0.42, [-0.5, -0.34], " nats")
    'lower by 0.42 nats (0.34 to 0.5)'
    >>> change_text(0.01, [-0.03, 0.05])
    'higher by 0.01 (0.03 lower to 0.05 higher)'
    """
    if not value and (ends is None or ends[0] == ends[1]):
        return "the same"
    by = f"{'higher' if value > 0 else 'lower'} by {number(abs(value))}{unit}"
    if ends is None:
        return by
    if ends[0] < 0 < ends[1]:
        return f"{by} ({number(-ends[0])} lower to {number(ends[1])} higher)"
    return f"{by} ({interval_text(sorted(map(abs, ends)), number)})"


def points_text(points: float | None, ends: Interval = None) -> str:
    """Say points lost as a loss or a gain, with the interval.

    >>> points_text(-3.9, [-5.8, -2.0])
    '3.9 points gained (2 to 5.8)'
    >>> points_text(0.3, [-0.4, 1.0])
    '0.3 points lost (0.4 gained to 1 lost)'
    """
    if points is None:
        return ""
    if not points:
        return "no points lost"
    said = f"{_points(points)} points {'lost' if points > 0 else 'gained'}"
    return f"{said} ({points_interval(ends)})" if ends else said


def points_interval(ends: Interval) -> str:
    """Say an interval of points lost from its small end to its large one, or from a gain to a loss.

    >>> points_interval([-0.4, 1.0]), points_interval([-2.0, -1.0])
    ('0.4 gained to 1 lost', '1 to 2')
    """
    if ends is None or not ends[0] < 0 < ends[1]:
        return "" if ends is None else interval_text(sorted(map(abs, ends)), _points)
    return f"{_points(ends[0])} gained to {_points(ends[1])} lost"


def _points(value: float) -> str:
    """Format a number of points with two significant digits, without its sign."""
    return f"{abs(value):.2g}" if abs(value) < 99.5 else f"{abs(value):,.0f}"


def beyond_chance(part: ProbeChange | TaskChange) -> bool:
    """Return whether points were lost beyond chance. Without an interval, they count as lost."""
    return part.interval is None or part.interval[0] > 0


def verdict_text(part: ProbeChange | TaskChange) -> str:
    """Say what became of an ability: kept, gained, or how much was lost."""
    if part.verdict != "kept":
        return {"significant": "significant loss", "flagged": "flagged loss"}.get(part.verdict or "", "")
    return "gained" if part.interval is not None and part.interval[1] < 0 else "kept"


def split_label(name: str, m: int | None) -> tuple[str, str]:
    """Return the label of a measure without its unit, and the unit."""
    text = label(name, m)
    return (text.removesuffix(", nats"), " nats") if text.endswith(", nats") else (text.split(", words")[0], "")


def at_most_samples(result: Evaluation, model: str) -> list[Difference]:
    """Return a model's differences, those that depend on M at the largest M."""
    return [row for row in result.differences if row.model == model and row.m == result.ends(row.measure)[-1]]


def headline(result: Evaluation) -> tuple[str, ...]:
    """Return the finding as one sentence, followed by sentences on what it rests on."""
    if not result.others:
        return _one_model(result)
    names = result.others
    best = min(names, key=lambda name: _rank(result, name))
    first, more = _against(result, best)
    lines = [more] if more else []
    for name in names:
        if name != best:
            sentence, more = _against(result, name)
            lines.append(f"{sentence} {more}".strip())
    if len(names) > 1:
        lines.append(f"Each model is compared with {result.baseline}, not with the others.")
    return (first, *lines, _basis(result))


def _rank(result: Evaluation, name: str) -> tuple[int, float]:
    """Return the place of a model in a list with the clearest gain first."""
    clear = _clear(result, name, "better")
    if not clear:
        return 1 + bool(_clear(result, name, "worse")), 0.0
    row = clear[0]
    return 0, -abs(row.rate or 0.0) if isinstance(row, WinRate) else -abs(row.difference or 0.0)


def _clear(result: Evaluation, name: str, outcome: str) -> list[WinRate | Difference]:
    """Return what has this outcome for a model, the most telling first."""
    judged: list[WinRate | Difference] = [row for row in result.judged if (row.model, row.outcome) == (name, outcome)]
    rows = [row for row in at_most_samples(result, name) if row.outcome == outcome]
    order = [*FIRST, *(measure for measure in MEASURES if measure not in FIRST)]
    return judged + sorted(rows, key=lambda row: order.index(row.measure))


def _said(row: WinRate | Difference) -> str:
    if isinstance(row, WinRate):
        return f"a judge prefers its samples in {share(row.rate)} of pairs ({interval_text(row.interval, share)})"
    text, unit = split_label(row.measure, row.m)
    return f"{text} is {change_text(row.difference or 0.0, row.interval, unit)}"


def _name(row: WinRate | Difference) -> str:
    return "the judge's preference" if isinstance(row, WinRate) else split_label(row.measure, row.m)[0]


def _against(result: Evaluation, name: str) -> tuple[str, str]:
    """Return a sentence on a model against the baseline, and one on what it leaves out."""
    base = result.baseline
    better, worse, different = (_clear(result, name, kind) for kind in ("better", "worse", "different"))
    lost = _lost(result, name)
    rest: list[WinRate | Difference] = []
    if better and worse:
        first = f"{name} is better than {base} in some measures and worse in others: {_said(better[0])}, but"
        first, rest = f"{first} {_said(worse[0])}.", [better[0], worse[0]]
    elif better or worse:
        shown = (better or worse)[0]
        first, rest = f"{name} is {'better' if better else 'worse'} than {base}: {_said(shown)}.", [shown]
    else:
        first, rest = _unclear(result, name, different)
    if lost is not None:
        first = f"{first[:-1]}; but {name} lost {_loss(lost)}."
    groups = (("also better in", better), ("also worse in", worse), ("different in", different))
    parts = [f"{words} {names}" for words, rows in groups if (names := _names(rows, rest))]
    unclear = [row for row in at_most_samples(result, name) if row.outcome == "unclear"]
    if (better or worse or different) and (names := _names(unclear, rest)):
        parts.append(f"no clear difference in {names}")
    if lost is None:
        kept = next((row.probe[0] for row in result.forgetting if row.model == name and row.probe), None)
        parts += (
            []
            if kept is None
            else [f"general probe, before and after training: {points_text(kept.points, kept.interval)}"]
        )
    text = "; ".join(parts)
    return first, f"{text[:1].upper()}{text[1:]}." if text else ""


def _names(rows: Sequence[WinRate | Difference], without: Sequence[WinRate | Difference]) -> str:
    return ", ".join(_name(row) for row in rows if row not in without)


def _unclear(
    result: Evaluation, name: str, different: Sequence[WinRate | Difference]
) -> tuple[str, list[WinRate | Difference]]:
    """Return a sentence for a model that is neither better nor worse, and what it names."""
    base, prompts = result.baseline, result.data.prompts
    if different:
        said = _said(different[0])
        return f"{name} is different from {base}, and neither better nor worse: {said}.", [different[0]]
    rows: list[WinRate | Difference] = [row for row in result.judged if row.model == name and row.rate is not None]
    measured = [row for row in at_most_samples(result, name) if row.measure in FIRST and row.difference is not None]
    measured.sort(key=lambda row: FIRST.index(row.measure))
    rows += measured
    if not rows:
        return f"{name} and {base} have no measure in common.", []
    ends = rows[0].interval
    if ends is None:
        sentence = f"{prompts} prompts are too few to tell {name} from {base}: {_said(rows[0])}, without an interval."
    else:
        sentence = f"No clear difference between {name} and {base} on {prompts:,} prompts: {_said(rows[0])}"
        tested = sum(row.p is not None for row in result.differences)
        by_chance = isinstance(rows[0], Difference) and not ends[0] <= 0 <= ends[1]
        sentence += f", which chance gives among {tested} comparisons." if by_chance else "."
    return sentence, [rows[0]]


def _lost(result: Evaluation, name: str) -> ProbeChange | TaskChange | None:
    """Return the largest flagged loss of general ability beyond chance."""
    parts = [part for row in result.forgetting if row.model == name for part in row.losses if beyond_chance(part)]
    return max(parts, key=lambda part: part.points or 0.0, default=None)


def _loss(part: ProbeChange | TaskChange) -> str:
    where = "the general probe" if isinstance(part, ProbeChange) else f"{part.task} ({part.metric})"
    ends = f" ({points_interval(part.interval)})" if part.interval else ""
    return f"{_points(part.points or 0.0)} points on {where}{ends}"


def _one_model(result: Evaluation) -> tuple[str, ...]:
    (model,) = result.models
    known = [row for row in model.measures if row.value is not None and row.m == result.ends(row.measure)[-1]]
    known = sorted((row for row in known if row.measure in FIRST), key=lambda row: FIRST.index(row.measure))
    parts = []
    for row in [row for row in known if row.measure != "nll_per_response" or known[0] is row][:2]:
        text, unit = split_label(row.measure, row.m)
        ends = f" ({interval_text(row.interval, number)})" if row.interval else ""
        parts.append(f"{text} is {number(row.value)}{unit}{ends}")
    found = f": {' and '.join(parts)}" if parts else " was measured"
    first = f"{model.name} alone, on {result.data.prompts:,} prompts{found}."
    lines = [f"The judge against the references: {_said(row)}." for row in result.judged if row.rate is not None]
    lost = _lost(result, model.name)
    if lost is not None:
        first = f"{first[:-1]}; it lost {_loss(lost)}."
    else:
        probes = [row.probe[0] for row in result.forgetting if row.probe]
        lines += [f"General probe: {points_text(part.points, part.interval)}." for part in probes]
    return (first, *lines, _basis(result))


def _basis(result: Evaluation) -> str:
    """Say how many prompts and samples the finding rests on, and how it was judged."""
    data, m = result.data, max((model.samples.most for model in result.models if model.samples), default=0)
    samples = f" and {m} samples of each model for each" if m else ""
    basis = f"{data.prompts:,} held-out prompts{samples}"
    if data.prompts < FEWEST:
        return f"Measured on {basis}: too few for intervals."
    tested = sum(row.p is not None for row in result.differences)
    corrected = f", and verdicts are corrected for {tested} comparisons" if tested > 1 else ""
    return f"Measured on {basis}. Intervals are {result.intervals['level']:.0%}, over prompts{corrected}."


def strips(result: Evaluation) -> list[Strip]:
    """Return the differences from the baseline, each with "better" to the right."""
    values = {model.name: model for model in result.models}
    rows = [_judged_strip(row) for row in result.judged if row.rate is not None and row.model != result.baseline]
    for key in result.keys:
        found = [row for row in result.differences if (row.measure, row.m) == key and row.difference is not None]
        if key[1] == result.ends(key[0])[-1]:
            reach = max(
                (abs(end) for row in found for end in (row.difference or 0.0, *(row.interval or ()))), default=0
            )
            rows += [_strip(row, result, values, reach) for row in found]
    for row in result.forgetting:
        rows += [_forgetting_strip(row, part) for part in (row.probe or [])[:1]]
        rows += [_forgetting_strip(row, part) for part in row.tasks if part.points is not None]
    return rows


def _strip(row: Difference, result: Evaluation, values: dict[str, ModelResult], reach: float) -> Strip:
    key: Key = (row.measure, row.m)
    found = [values[name].value(*key) for name in (result.baseline, row.model)]
    before, after = (None if one is None else one.value for one in found)
    text, unit = split_label(*key)
    note = f"{result.baseline} {number(before)}, {row.model} {number(after)}"
    if result.references is not None and row.measure in WORDS:
        target = result.references.length if row.measure == "length" else result.references.diversity
        note += f", references {number(target)}" if target is not None else ""
    sign = -1 if MEASURES[row.measure][1] == "lower" else 1
    ends = sorted(sign * end for end in row.interval or ())
    return Strip(
        text,
        change_text(row.difference or 0.0, row.interval, unit),
        sign * (row.difference or 0.0),
        (ends[0], ends[1]) if ends else None,
        f"{row.model} {row.outcome}" if len(result.others) > 1 else row.outcome,
        row.outcome,
        ends=WORDS.get(row.measure, ("worse", "better")),
        unit=unit,
        note=note,
        reach=reach,
    )


def _judged_strip(row: WinRate) -> Strip:
    assert row.rate is not None
    ends = (100 * row.interval[0] - 50, 100 * row.interval[1] - 50) if row.interval else None
    said = f"preferred in {share(row.rate)} of pairs ({interval_text(row.interval, share)})"
    counts = f"{row.model}: {row.wins:,} won, {row.ties:,} tied, {row.losses:,} lost"
    return Strip("a judge's preference", said, 100 * row.rate - 50, ends, row.outcome, unit=" points", note=counts)


def _forgetting_strip(row: Forgetting, part: ProbeChange | TaskChange) -> Strip:
    """Return a strip with what was gained to the right."""
    unit = " nats per token" if isinstance(part, ProbeChange) else ""
    name = "general probe" if isinstance(part, ProbeChange) else f"{part.task}, {part.metric}"
    gained = -(part.points or 0.0)
    ends = (-part.interval[1], -part.interval[0]) if part.interval else None
    verdict, kept = verdict_text(part), part.verdict == "kept"
    look = {"gained": "better", "kept": "unclear"}.get(verdict, "worse" if beyond_chance(part) else "unclear")
    verdict = verdict if kept or look == "worse" else "unclear"
    note = f"{row.model}: before {number(part.before)}, after {number(part.after)}{unit}"
    said, sides = points_text(part.points, part.interval), ("lost", "gained")
    return Strip(name, said, gained, ends, verdict, look, ends=sides, unit=" points", note=note)


def next_step(result: Evaluation) -> NextStep:
    """Return what to do next, with the paths of this evaluation."""
    data, model, seed = result.data, result.models[0], int(result.intervals["seed"])
    lost = next((row.model for row in result.forgetting if any(map(beyond_chance, row.losses))), None)
    if lost is not None:
        remedy = "Mix 5 to 10 % general data into its training (mrt select --proportion), or train fewer steps"
        return NextStep(f"{lost} lost general ability. {remedy}, and evaluate again", again(result))
    if len(result.models) == 1:
        if model.adapter:
            return NextStep("compare it with the model before training", again(result, first=model.path))
        why = "compare it with the model before training, whose path replaces BASE"
        return NextStep(why, again(result, first="BASE"))
    if data.prompts < FEW:
        why = (
            f"{data.prompts} prompts decide little. Hold more of them out (mrt select --held-out), and evaluate again"
        )
        return NextStep(why, again(result))
    worse = [row.model for row in result.differences if row.outcome == "worse" and row.measure == "coverage"]
    path = next((one.path for one in result.models if one.path), None)
    if worse and path and not result.how["endpoint"] and data.references_median >= 2:
        why = f"{worse[0]} covers the references less than {result.baseline}. See how many responses per prompt pay"
        return NextStep(why, shlex.join(["mrt", "plan", data.name, "--model", path, "--report", "plan.html"]))
    if result.how["embedder"] == "lexical" and any(row.measure == "coverage" for row in result.differences):
        return NextStep("compare meanings instead of spelling", again(result, "--embedder", "sentence-transformers"))
    if not result.how["m"] and path:
        return NextStep("draw samples to read: the NLL alone shows no answer", again(result, "--m", "8"))
    other = ("--seed", str(seed + 1), "--output", f"{result.how['folder']}_seed{seed + 1}")
    return NextStep("see whether it holds with other samples, and read them", again(result, *other))


def again(result: Evaluation, *more: str, first: str | None = None) -> str:
    """Return the command that makes this evaluation, with `more` options and a `first` model before the others."""
    how, line = result.how, ["mrt", "evaluate"]
    line += ["--model", first] if first else []
    for model in result.models:
        where = "+".join(part for part in (model.path, model.adapter) if part)
        line += ["--model", f"{model.name}={where}"] if where else []
        line += ["--pool", f"{model.name}={model.pool}"] if model.pool else []
    line += ["--baseline", result.baseline] if result.baseline != result.models[0].name else []
    line += ["--data", result.data.name]
    tasks = list(dict.fromkeys(one.task for row in result.forgetting for one in row.tasks))
    settings = {
        "--m": how["m"],
        "--embedder": how["embedder"] or ("none" if how["m"] else None),
        "--scorer": how["scorer"],
        "--checker": how["checker"],
        "--judge": how["judge"] and how["judge"]["name"],
        "--lm-eval": ",".join(tasks),
        "--endpoint": how["endpoint"],
        "--max-tokens": how["settings"]["max_tokens"],
        "--output": how["folder"],
        "--report": "evaluation.html",
    }
    usual = {"--embedder": "lexical", "--max-tokens": 512, "--output": "evaluation"}
    for name, value in settings.items():
        if name not in more and value not in (None, "", usual.get(name)):
            line += [name, str(value)]
    return shlex.join([*line, *(["--load-in-4bit"] if how["load_in_4bit"] else []), *more])
