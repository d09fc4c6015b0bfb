"""Show an evaluation as tables, plots and an HTML page."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mrt_plugin.evaluation.abilities import ability_of
from mrt_plugin.evaluation.result import (
    CURVES,
    MEASURES,
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
from mrt_plugin.report import Report, figure, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[list[str], list[list[str]]]
"""Columns and rows."""

STYLES = (("o", "-", "black"), ("s", "--", "0.4"), ("^", "-.", "0.2"), ("D", ":", "0.5"), ("v", "-", "0.6"))
"""Marker, line style and shade of each model, in order, so that plots are readable without colour."""
ANSWERS_SHOWN = 6
"""Number of right answers to one prompt that are shown one by one."""
ARROWS = {"higher": " (right is better)", "lower": " (left is better)", "neither": ""}


def measure_rows(result: Evaluation, *, intervals: bool = True) -> Table:
    """Build a table with a column per model and a row per measure, at the smallest and the largest M."""

    def cell(row: Value | None) -> str:
        if row is None or row.value is None:
            return "-"
        return number(row.value) + (f" ({_interval(row.interval, number)})" if row.interval and intervals else "")

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
        [label(row.measure, row.m), signed(row.difference), _interval(row.interval, signed), row.outcome]
        for row in result.differences
        if row.model == model and row.m in result.ends(row.measure)
    ]
    return [f"{model} minus {result.baseline}", "difference", f"{result.intervals['level']:.0%} interval", ""], rows


def judged_rows(result: Evaluation) -> Table:
    """Build a table with a row per model that a judge compared."""
    rows = []
    for row in result.judged:
        rate = "" if row.rate is None else f"{_share(row.rate)} ({_interval(row.interval, _share)})"
        ends = _interval(row.length_controlled_interval, _share)
        controlled = _share(row.length_controlled) + (f" ({ends})" if ends else "")
        counts = f"{row.wins:,} / {row.ties:,} / {row.losses:,}"
        bias = "" if row.first_shown is None else f"{_share(row.first_shown)}, {_share(row.consistent)}"
        rows.append([row.model, rate, controlled, counts, bias, row.outcome])
    columns = ["won / tied / lost", "for the first shown, same in both orders", ""]
    against = result.judged[0].against if result.judged else ""
    return [f"judged against {against}", "win rate", "at equal lengths", *columns], rows


def reward_rows(result: Evaluation) -> Table:
    """Build a table of how the judge agrees with the scorer."""
    found = [(row.model, row.reward) for row in result.judged if row.reward is not None]
    rows = [
        [name, f"{one.decided:,}", _share(one.accuracy), number(one.kendall), number(one.spearman)]
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
        numbers = [number(part.before), number(part.after), signed(part.points)]
        rows.append([name, *numbers, _interval(part.interval, signed), part.verdict or ""])
    return [f"{row.model} against {row.before}", "before", "after", "points lost", "interval", ""], rows


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
    report.text(_summary(result), lead=True)
    if result.notes:
        report.list(result.notes)
    report.text(f"{result.data.prompts:,} prompts, {result.data.with_references:,} with references. {result.next}")
    report.heading("The models")
    report.table(*measure_rows(result))
    how, settings = result.how, result.how["settings"]
    parts = [f"temperature {settings['temperature']:g}, top_p {settings['top_p']:g}, seed {settings['seed']}"]
    parts.append(f"at most {settings['max_tokens']} tokens")
    parts += [f"{name} {how[name]}" for name in ("embedder", "scorer", "checker") if how[name] is not None]
    level = f"Intervals are {result.intervals['level']:.0%}, by a bootstrap over prompts."
    report.text(f"Samples: {'; '.join(parts)}. {level}")
    drawn = [name for name in CURVES if any(model.curve(name) for model in result.models)]
    if drawn:
        report.heading("What more samples bring")
        caption = "Measures by the number of samples M. Bars are intervals over prompts."
        report.figure(curves_figure(result.models, drawn), caption)
        report.table(*curve_rows(result))
    if result.others:
        report.heading(f"Compared with {result.baseline}")
        report.figure(
            difference_figure(result),
            "Differences on the same prompts in units of half their interval. A filled mark is a difference that "
            "chance does not explain, corrected for the number of comparisons. The table has the numbers themselves.",
        )
        for name in result.others:
            report.table(*difference_rows(result, name), text_columns=(0, 3))
    if result.judged:
        report.heading("What a judge prefers")
        report.table(*judged_rows(result), text_columns=(0, 5))
        report.text(
            f"The judge is {how['judge']['name']}. Each pair is shown in both orders. Intervals of the win rate are "
            "Wilson's with the number of prompts; that at equal lengths has a bootstrap over prompts."
        )
        if reward_rows(result)[1]:
            report.table(*reward_rows(result))
    if result.forgetting:
        report.heading("What was forgotten")
        report.text(
            f"A loss of {result.points['flagged']:g} points is flagged, one of {result.points['significant']:g} is "
            "called significant. A point of the probe is one per cent of the probability that the model gives to a "
            "token (geometric mean). A point of a task is one hundredth of its score."
        )
        for row in result.forgetting:
            report.table(*forgetting_rows(row), text_columns=(0, 5))
        probed = [row for row in result.forgetting if row.probe]
        if probed:
            caption = "Points lost on the general probe, by kind of text."
            report.figure(forgetting_figure(probed, result.points), caption)
    if result.example is not None:
        report.heading("Right answers to one prompt")
        report.text("The prompt in the middle: half of all prompts gain more in KL, half less.")
        report.table(*example_rows(result))
    if result.outputs:
        report.heading("Outputs to read")
        report.text("The first draws of each model on prompts that a hash chose: none was picked.")
        for outputs in result.outputs:
            report.side_by_side(outputs.prompt, _columns(outputs), "References", _references(outputs))
    return report.html()


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


def number(value: float | None) -> str:
    """Format a number with three significant digits, four from 1 upwards, and one decimal from 100 upwards."""
    if value is None:
        return ""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"


def signed(value: float | None) -> str:
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _interval(ends: Interval, form: Callable[[float], str]) -> str:
    return "" if ends is None else f"{form(ends[0])} to {form(ends[1])}"


def _summary(result: Evaluation) -> str:
    """Summarise the clear differences in one sentence per model."""
    if not result.others:
        return f"{result.baseline} on {result.data.prompts:,} prompts. {result.next}"
    sentences = []
    for name in result.others:
        clear: dict[str, list[str]] = {"better": [], "worse": []}
        for row in result.differences:
            if row.model == name and row.outcome in clear and row.m == result.ends(row.measure)[-1]:
                clear[row.outcome].append(label(row.measure, row.m))
        parts = [f"{outcome} in {', '.join(measures)}" for outcome, measures in clear.items() if measures]
        found = "; ".join(parts) or "no clear difference on these prompts"
        sentences.append(f"{name} against {result.baseline}: {found}.")
    return " ".join(sentences)


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


def difference_figure(result: Evaluation) -> "Figure":
    """Plot every difference with its interval, scaled to fit one axis."""
    others = result.others
    rows = [row for row in result.differences if row.scaled is not None and row.m in result.ends(row.measure)]
    keys = list(dict.fromkeys((row.measure, row.m) for row in rows))
    made, (axis,) = figure(width=7, height=1.2 + 0.32 * len(keys) * max(1, len(others)))
    handles: dict[int, Any] = {}
    for row in rows:
        assert row.scaled is not None
        turn = others.index(row.model)
        place = keys.index((row.measure, row.m)) + (turn - (len(others) - 1) / 2) * 0.8 / len(others)
        values, reach = _bars([(row.scaled[1], row.scaled[::2])])
        marks = axis.errorbar(values, place, xerr=reach, **_style(turn + 1, row.model, row.outcome == "unclear"))
        handles.setdefault(turn, marks)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(keys)), [label(*key) + ARROWS[MEASURES[key[0]][1]] for key in keys])
    axis.set_ylim(len(keys) - 0.5, -0.5)
    axis.set_xlabel("difference, in half intervals (filled: beyond chance)")
    if len(others) > 1:
        axis.legend(handles=[handles[turn] for turn in sorted(handles)])
    return made


def forgetting_figure(rows: Sequence[Forgetting], points: dict[str, float]) -> "Figure":
    """Plot the points lost by kind of text, with the two thresholds."""
    kinds = [part.kind for part in rows[0].probe or []]
    made, (axis,) = figure(height=3.4)
    for turn, row in enumerate(rows):
        places = [place + (turn - (len(rows) - 1) / 2) * 0.6 / len(rows) for place in range(len(kinds))]
        values, reach = _bars([(part.points, part.interval) for part in row.probe or []])
        axis.errorbar(places, values, yerr=reach, **_style(turn, row.model, turn % 2 == 1))
    axis.axhline(0, color="black", linewidth=0.8)
    for name, line in (("flagged", ":"), ("significant", "--")):
        axis.axhline(points[name], color="0.4", linewidth=0.8, linestyle=line)
        axis.annotate(name, (1, points[name]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_xlim(-0.5, len(kinds) + 0.2)  # room for the labels of the lines
    axis.set_ylabel("points lost")
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
