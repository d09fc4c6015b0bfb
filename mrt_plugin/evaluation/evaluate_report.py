"""Show an evaluation as tables, plots and an HTML page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mrt_plugin.evaluation.abilities import ability_of
from mrt_plugin.evaluation.findings import (
    headline,
    interval_text,
    next_step,
    number,
    points_interval,
    points_text,
    share,
    strips,
    verdict_text,
)
from mrt_plugin.evaluation.result import (
    CURVES,
    Evaluation,
    Forgetting,
    Interval,
    ModelResult,
    Outputs,
    ProbeChange,
    RightAnswer,
    Sample,
    TaskChange,
    Value,
    label,
)
from mrt_plugin.groups.problems import plural
from mrt_plugin.report import Report, figure, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[list[str], list[list[str]]]
"""Columns and rows."""

STRIPS = (
    "Each row has its own scale with no difference in the middle, and better on the right. A line is the interval of "
    "a comparison alone. A filled mark is a difference beyond chance, corrected for the number of comparisons. "
    "Points of general ability are not corrected."
)
UNFOLDED = 3
"""Number of prompts whose outputs are not folded."""
STYLES = (("o", "-", "black"), ("s", "--", "0.4"), ("^", "-.", "0.2"), ("D", ":", "0.5"), ("v", "-", "0.6"))
"""Marker, line style and shade of each model, in order, so that plots are readable without colour."""
ANSWERS_SHOWN = 6
"""Number of right answers to one prompt that are shown one by one."""


def measure_rows(result: Evaluation, *, intervals: bool = True) -> Table:
    """Build a table with a column per model and a row per measure, at the smallest and the largest M."""

    def cell(row: Value | None) -> str:
        if row is None or row.value is None:
            return "-"
        return number(row.value) + (f" ({interval_text(row.interval, number)})" if row.interval and intervals else "")

    keys = [(name, m) for name, m in result.keys if m in result.ends(name)]
    rows = [[label(*key), *(cell(model.value(*key)) for model in result.models)] for key in keys]
    columns = ["", *(model.name for model in result.models)]
    if result.references is not None:
        columns.append("the references")
        means = {"diversity": result.references.diversity, "length": result.references.length}
        for row, (name, _) in zip(rows, keys, strict=True):
            row.append(number(means.get(name)))
    return columns, rows


def curve_rows(result: Evaluation) -> Table:
    ms = sorted({m for _, m in result.keys if m is not None})
    rows = []
    for name in CURVES:
        for model in result.models:
            found = [model.value(name, m) for m in ms]
            if any(found):
                rows.append([f"{label(name)}, {model.name}", *(number(row.value if row else None) for row in found)])
    return ["", *(f"M = {m}" for m in ms)], rows


def difference_rows(result: Evaluation, model: str) -> Table:
    rows = [
        [label(row.measure, row.m), signed(row.difference), interval_text(row.interval, signed), row.outcome]
        for row in result.differences
        if row.model == model and row.m in result.ends(row.measure)
    ]
    return [f"{model} minus {result.baseline}", "difference", f"{result.intervals['level']:.0%} interval", ""], rows


def judged_rows(result: Evaluation) -> Table:
    """Build a table with a row per model that a judge compared."""
    rows = []
    for row in result.judged:
        rate = "" if row.rate is None else f"{share(row.rate)} ({interval_text(row.interval, share)})"
        ends = interval_text(row.length_controlled_interval, share)
        controlled = share(row.length_controlled) + (f" ({ends})" if ends else "")
        counts = f"{row.wins:,} / {row.ties:,} / {row.losses:,}"
        bias = "" if row.first_shown is None else f"{share(row.first_shown)}, {share(row.consistent)}"
        rows.append([row.model, rate, controlled, counts, bias, row.outcome])
    columns = ["won / tied / lost", "for the first shown, same in both orders", ""]
    against = result.judged[0].against if result.judged else ""
    return [f"judged against {against}", "win rate", "at equal lengths", *columns], rows


def reward_rows(result: Evaluation) -> Table:
    """Build a table of how the judge agrees with the scorer."""
    found = [(row.model, row.reward) for row in result.judged if row.reward is not None]
    rows = [
        [name, f"{one.decided:,}", share(one.accuracy), number(one.kendall), number(one.spearman)]
        for name, one in found
    ]
    return ["the judge and the rewards", "pairs", "same order", "Kendall", "Spearman"], rows


def forgetting_rows(row: Forgetting) -> Table:
    named: list[tuple[str, ProbeChange | TaskChange]] = [
        ("general probe, nats per token" if part.kind == "all" else f"  {part.kind}", part) for part in row.probe or []
    ]
    for one in row.tasks:
        ability = ability_of(one.task)
        named.append((f"{ability}: {one.task}, {one.metric}" if ability else f"{one.task}, {one.metric}", one))
    rows = []
    for name, part in named:
        numbers = [number(part.before), number(part.after)]
        change = [points_text(part.points), points_interval(part.interval)]
        rows.append([name, *numbers, *change, verdict_text(part)])
    return [f"{row.model} against {row.before}", "before", "after", "change", "interval", ""], rows


def example_rows(result: Evaluation) -> Table:
    """Build a table of the likeliest right answers to one prompt: true probability, each model's, and its draws."""
    if result.example is None:
        return [""], []
    answers = result.example.answers
    names = list(answers[0].models)
    listed, rest = answers[:ANSWERS_SHOWN], answers[ANSWERS_SHOWN:]
    if rest:
        listed.append(_together(rest))
    rows = [[one.text, f"{one.probability:.0%}", *(_answer(one, name) for name in names)] for one in listed]
    return [result.example.prompt, "truth", *names], rows


def _together(answers: Sequence[RightAnswer]) -> RightAnswer:
    """Return the answers as one, with their probabilities and draws added up."""
    first = answers[0]
    return RightAnswer(
        f"{len(answers)} other right answers",
        sum(one.probability for one in answers),
        {name: sum(one.models[name] for one in answers) for name in first.models},
        {name: sum(one.draws[name] for one in answers) for name in first.draws},
    )


def _answer(answer: RightAnswer, model: str) -> str:
    """Return a model's probability of an answer, and how often it drew it."""
    return f"{answer.models[model]:.0%}" + (f" ({answer.draws[model]} drawn)" if model in answer.draws else "")


def evaluation_report(result: Evaluation) -> str:
    """Build the HTML page of a result from `evaluate`.

    Example:

    ```python
    from pathlib import Path

    from mrt_plugin import evaluate
    from mrt_plugin.evaluation import How, evaluation_report, read_cases
    from mrt_plugin.models import parse_models

    result = evaluate(read_cases("held_out.jsonl"), parse_models(["path/to/base"]), How(Path("evaluation"), m=2))
    Path("evaluation.html").write_text(evaluation_report(result))
    ```
    """
    report = Report(f"Evaluation on {result.data.name}")
    report.headline(*headline(result))
    drawn = [name for name in CURVES if any(model.curve(name) for model in result.models)]
    compared = strips(result)
    if compared:
        report.strips(compared, STRIPS)
    if drawn and not result.others:
        _add_curves(report, result, drawn)
    if result.example is not None:
        report.heading("Right answers to one prompt")
        report.text("The prompt in the middle: half of all prompts gain more in KL, half less.")
        report.table(*example_rows(result))
    if result.outputs:
        _add_outputs(report, result.outputs)
    report.heading("All numbers")
    with report.folded("Every measure"):
        report.table(*measure_rows(result))
        report.text(_samples(result))
    if result.others:
        with report.folded(f"Differences from {result.baseline}"):
            for name in result.others:
                report.table(*difference_rows(result, name), text_columns=(0, 3))
    if drawn and result.others:
        with report.folded("What more samples bring"):
            _add_curves(report, result, drawn)
    if result.judged:
        with report.folded("What a judge prefers"):
            _add_judged(report, result)
    if result.forgetting:
        with report.folded("General ability before and after"):
            _add_forgetting(report, result)
    if result.notes:
        report.heading("What this rests on")
        report.list(result.notes)
    report.next_step(next_step(result))
    return report.html()


def _samples(result: Evaluation) -> str:
    how, settings = result.how, result.how["settings"]
    parts = [f"temperature {settings['temperature']:g}, top_p {settings['top_p']:g}, seed {settings['seed']}"]
    parts.append(f"at most {settings['max_tokens']} tokens")
    parts += [f"{name} {how[name]}" for name in ("embedder", "scorer", "checker") if how[name] is not None]
    counts = f"{result.data.prompts:,} prompts, {result.data.with_references:,} with references."
    level = f"Intervals are {result.intervals['level']:.0%}, by a bootstrap over prompts."
    return f"{counts} Samples: {'; '.join(parts)}. {level}"


def _add_curves(report: Report, result: Evaluation, drawn: list[str]) -> None:
    caption = "Measures by the number of samples M. Bars are intervals over prompts."
    report.figure(curves_figure(result.models, drawn), caption)
    report.table(*curve_rows(result))


def _add_judged(report: Report, result: Evaluation) -> None:
    report.table(*judged_rows(result), text_columns=(0, 5))
    report.text(
        f"The judge is {result.how['judge']['name']}. Each pair is shown in both orders. Intervals of the win rate "
        "are Wilson's with the number of prompts; that at equal lengths has a bootstrap over prompts."
    )
    if reward_rows(result)[1]:
        report.table(*reward_rows(result))


def _add_forgetting(report: Report, result: Evaluation) -> None:
    report.text(
        f"A loss of {result.points['flagged']:g} points is flagged, one of {result.points['significant']:g} is "
        "called significant. A point of the probe is one per cent of the probability that the model gives to a "
        "token (geometric mean). A point of a task is one hundredth of its score."
    )
    for row in result.forgetting:
        report.table(*forgetting_rows(row), text_columns=(0, 5))
    probed = [row for row in result.forgetting if row.probe]
    if probed:
        caption = "Points gained (up) and lost (down) on the general probe, by kind of text."
        report.figure(forgetting_figure(probed, result.points), caption)


def _add_outputs(report: Report, outputs: Sequence[Outputs]) -> None:
    report.heading("Answers to read")
    report.text("The first draws of each model on prompts that a hash chose: none was picked.")
    for one in outputs[:UNFOLDED]:
        report.side_by_side(one.prompt, _columns(one), "References", _references(one))
    if outputs[UNFOLDED:]:
        with report.folded(f"{plural(len(outputs) - UNFOLDED, 'more prompt')}"):
            for one in outputs[UNFOLDED:]:
                report.side_by_side(one.prompt, _columns(one), "References", _references(one))


def _columns(outputs: Outputs) -> list[tuple[str, list[str]]]:
    """Return a column of samples per model."""
    return [(name, [_sample(one) for one in samples]) for name, samples in outputs.models.items()]


def _sample(one: Sample) -> str:
    marks = ["cut off"] if one.cut_off else []
    marks += [] if one.right is None else ["right" if one.right else "wrong"]
    marks += [] if one.reward is None else [f"reward {number(one.reward)}"]
    return (one.text or "(nothing)") + (f" [{', '.join(marks)}]" if marks else "")


def _references(outputs: Outputs) -> list[tuple[str, list[str]]]:
    more = f" (and {outputs.more_references} more)" if outputs.more_references else ""
    last = len(outputs.references)
    return [
        (f"reference {place}{more if place == last else ''}", [text])
        for place, text in enumerate(outputs.references, start=1)
    ]


def signed(value: float | None) -> str:
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def curves_figure(models: Sequence[ModelResult], names: Sequence[str]) -> "Figure":
    """Plot the measures that depend on M, the number of samples, with one axis each."""
    made, axes = figure(width=4.2 * len(names) if len(names) > 1 else 6, height=3.6, columns=len(names))
    for axis, name in zip(axes, names, strict=True):
        for turn, model in enumerate(models):
            points = model.curve(name)
            if points:
                places = [(point.m or 1) * 1.05 ** (turn - (len(models) - 1) / 2) for point in points]
                values, reach = _bars([(point.value, point.interval) for point in points])
                style = _style(turn, model.name, turn % 2 == 1) | {"linestyle": STYLES[turn % len(STYLES)][1]}
                axis.errorbar(places, values, yerr=reach, **style)
        ticks = sorted({point.m or 1 for model in models for point in model.curve(name)})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("M, samples per prompt")
        axis.set_ylabel(label(name))
        if name == "pass":
            axis.set_ylim(-0.03, 1.03)
    axes[0].legend(frameon=False)
    return made


def forgetting_figure(rows: Sequence[Forgetting], points: dict[str, float]) -> "Figure":
    """Plot the points gained and lost by kind of text, with the two thresholds of a loss."""
    kinds = [part.kind for part in rows[0].probe or []]
    made, (axis,) = figure(height=3.4)
    for turn, row in enumerate(rows):
        places = [place + (turn - (len(rows) - 1) / 2) * 0.6 / len(rows) for place in range(len(kinds))]
        gained = [(-part.points, part.interval and [-end for end in part.interval[::-1]]) for part in row.probe or []]
        values, reach = _bars(gained)
        axis.errorbar(places, values, yerr=reach, **_style(turn, row.model, turn % 2 == 1))
    axis.axhline(0, color="black", linewidth=0.8)
    for name, line in (("flagged", ":"), ("significant", "--")):
        axis.axhline(-points[name], color="0.4", linewidth=0.8, linestyle=line)
        axis.annotate(name, (1, -points[name]), xycoords=("axes fraction", "data"), ha="right", va="top", fontsize=8)
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_xlim(-0.5, len(kinds) + 0.2)  # room for the labels of the lines
    axis.set_ylabel("points lost (below 0) or gained")
    if len(rows) > 1:
        axis.legend(frameon=False)
    return made


def _bars(values: Sequence[tuple[float | None, Interval]]) -> tuple[list[float], list[list[float]]]:
    """Return the values, and how far their intervals reach below and above them."""
    known = [(value, ends or [value, value]) for value, ends in values if value is not None]
    below = [max(0.0, value - low) for value, (low, _) in known]
    return [value for value, _ in known], [below, [max(0.0, high - value) for value, (_, high) in known]]


def _style(turn: int, name: str, hollow: bool) -> dict[str, Any]:
    marker, _, shade = STYLES[turn % len(STYLES)]
    look = {"marker": marker, "linestyle": "none", "color": shade, "capsize": 3, "label": shown(name)}
    return {**look, "markerfacecolor": "white" if hollow else shade}
