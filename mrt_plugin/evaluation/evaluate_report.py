"""Show an evaluation as tables and as an HTML page. Every number shown is read from the evaluation's JSON."""

from typing import Any

from mrt_plugin.evaluation.evaluate_figures import curves_figure, difference_figure, forgetting_figure
from mrt_plugin.evaluation.measures import CURVES, MEASURES, ends_of, label, measure_keys, points_of
from mrt_plugin.report import Report


def measure_rows(result: dict[str, Any], *, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """Build a table with a column per model and a row per measure.

    Measures that depend on M, the number of samples, have rows for the smallest and the largest M.
    """
    names = [model["name"] for model in result["models"]]
    shown = [key for key in measure_keys(result) if key[1] in (None, *ends_of(result, key[0]))]
    rows = [[label(*key), *(_value(_found(model, key), intervals) for model in result["models"])] for key in shown]
    columns = ["", *names]
    references = result["references"]
    if references is not None:
        columns.append("the references")
        for row, (name, _) in zip(rows, shown, strict=True):
            value = references.get(name) if name in ("diversity", "length") else None
            row.append("" if value is None else number(value))
    return columns, rows


def curve_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Build a table with a column per M, and a row per model and measure that depends on M."""
    keys = [key for key in measure_keys(result) if key[1] is not None]
    ms = sorted({m for _, m in keys if m is not None})
    rows = []
    for name in CURVES:
        for model in result["models"]:
            found = [_found(model, (name, m)) for m in ms]
            if any(found):
                values = ["" if row is None else number(row["value"]) for row in found]
                rows.append([f"{MEASURES[name].label}, {model['name']}", *values])
    return ["", *(f"M = {m}" for m in ms)], rows


def difference_rows(result: dict[str, Any], model: str) -> tuple[list[str], list[list[str]]]:
    """Build a table of a model's differences from the baseline, with the smallest and the largest M."""
    rows = [
        [
            label(row["measure"], row["m"]),
            signed(row["difference"]),
            _interval(row["interval"], signed),
            row["outcome"],
        ]
        for row in result["differences"]
        if row["model"] == model and row["m"] in (None, *ends_of(result, row["measure"]))
    ]
    level = f"{result['intervals']['level']:.0%} interval"
    return [f"{model} minus {result['baseline']}", "difference", level, ""], rows


def forgetting_rows(row: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Build a table of a model's probe and tasks, before and after fine-tuning."""
    rows = []
    for part in row["probe"] or []:
        kind = "general probe, nats per token" if part["kind"] == "all" else f"  {part['kind']}"
        rows.append([kind, *(number(part[when]) for when in ("before", "after")), *_points(part)])
    for part in row["tasks"]:
        before = "" if part["before"] is None else number(part["before"])
        rows.append([f"{part['task']}, {part['metric']}", before, number(part["after"]), *_points(part)])
    return [f"{row['model']} against {row['before']}", "before", "after", "points lost", "interval", ""], rows


def evaluation_report(result: dict[str, Any]) -> str:
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
    data, models = result["data"], result["models"]
    report = Report(f"Evaluation on {data['name']}")
    report.text(_summary(result), lead=True)
    if result["notes"]:
        report.list(result["notes"])
    report.text(f"{data['prompts']:,} prompts, {data['with_references']:,} of them with references. {result['next']}")
    report.heading("The models")
    columns, rows = measure_rows(result)
    report.table(columns, rows)
    report.text(_how(result))
    drawn = [name for name in CURVES if any(points_of(model, name) for model in models)]
    if drawn:
        report.heading("What more samples bring")
        report.figure(
            curves_figure(result, drawn), "Against the number of samples M. Bars are intervals over prompts."
        )
        report.table(*curve_rows(result))
    others = [model["name"] for model in models if model["name"] != result["baseline"]]
    if others:
        report.heading(f"Beside {result['baseline']}")
        report.figure(
            difference_figure(result),
            "Differences on the same prompts in units of half their interval. A filled mark is a difference that "
            "chance does not explain, corrected for the number of comparisons. The table has the numbers themselves.",
        )
        for name in others:
            report.table(*difference_rows(result, name), text_columns=(0, 3))
    if result["forgetting"]:
        report.heading("What was forgotten")
        report.text(_threshold(result))
        for row in result["forgetting"]:
            report.table(*forgetting_rows(row), text_columns=(0, 5))
        probed = [row for row in result["forgetting"] if row["probe"]]
        if probed:
            report.figure(
                forgetting_figure(probed, result["points"]), "Points lost on the general probe, by kind of text."
            )
    if result["outputs"]:
        report.heading("Outputs to read")
        report.text("The first draws of each model on prompts that a hash chose: none was picked.")
        for row in result["outputs"]:
            _reading(report, row)
    return report.html()


def _reading(report: Report, row: dict[str, Any]) -> None:
    panels = [(f"reference {place}", text) for place, text in enumerate(row["references"], start=1)]
    if row["more_references"]:
        panels[-1] = (f"{panels[-1][0]} (and {row['more_references']} more)", panels[-1][1])
    if not panels:
        panels = [("no reference", "")]
    for name, said in row["models"].items():
        for one in said:
            marks = [
                mark
                for mark in (
                    "cut off" if one["cut_off"] else "",
                    "" if one["right"] is None else "right" if one["right"] else "wrong",
                    "" if one["reward"] is None else f"reward {number(one['reward'])}",
                )
                if mark
            ]
            about = f" ({', '.join(marks)})" if marks else ""
            panels.append((name + about, one["text"] or "(nothing)"))
    report.side_by_side(row["prompt"], panels)


def number(value: float | None) -> str:
    """Format a number with three significant digits, four from 1 upwards, and one decimal from 100 upwards."""
    if value is None:
        return ""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"


def signed(value: float | None) -> str:
    """Format a number like `number`, with its sign."""
    return "" if value is None else f"+{number(value)}" if value > 0 else number(value)


def _found(model: dict[str, Any], key: tuple[str, int | None]) -> dict[str, Any] | None:
    return next((row for row in model["measures"] if (row["measure"], row["m"]) == key), None)


def _value(row: dict[str, Any] | None, interval: bool) -> str:
    if row is None or row["value"] is None:
        return "-"
    ends = f" ({_interval(row['interval'], number)})" if row["interval"] and interval else ""
    return number(row["value"]) + ends


def _interval(ends: list[float] | None, shown: Any) -> str:
    return "" if ends is None else f"{shown(ends[0])} to {shown(ends[1])}"


def _points(part: dict[str, Any]) -> list[str]:
    return [signed(part["points"]), _interval(part["interval"], signed), part["verdict"] or ""]


def _summary(result: dict[str, Any]) -> str:
    """Summarise the clear differences in one sentence per model."""
    others = [model["name"] for model in result["models"] if model["name"] != result["baseline"]]
    if not others:
        return f"{result['baseline']} on {result['data']['prompts']:,} prompts. {result['next']}"
    said = []
    for name in others:
        clear: dict[str, list[str]] = {}
        for row in result["differences"]:
            if (
                row["model"] == name
                and row["outcome"] in ("better", "worse")
                and row["m"]
                in (
                    None,
                    *ends_of(result, row["measure"])[-1:],
                )
            ):
                clear.setdefault(row["outcome"], []).append(label(row["measure"], row["m"]))
        parts = [f"{outcome} in {', '.join(clear[outcome])}" for outcome in ("better", "worse") if outcome in clear]
        told = "; ".join(parts) if parts else "not told apart by these prompts"
        said.append(f"{name} against {result['baseline']}: {told}.")
    return " ".join(said)


def _threshold(result: dict[str, Any]) -> str:
    points = result["points"]
    return (
        f"A loss of {points['flagged']:g} points is flagged, one of {points['significant']:g} called significant. A "
        "point of the probe is one per cent of the probability that the model gives to a token (geometric mean), a "
        "point of a task one hundredth of its score."
    )


def _how(result: dict[str, Any]) -> str:
    how = result["how"]
    settings = how["settings"]
    parts = [f"temperature {settings['temperature']:g}, top_p {settings['top_p']:g}, seed {settings['seed']}"]
    parts.append(f"at most {settings['max_tokens']} tokens")
    parts += [f"{name} {how[name]}" for name in ("embedder", "scorer", "checker") if how[name] is not None]
    level = f"Intervals are {result['intervals']['level']:.0%}, by a bootstrap over prompts."
    return f"Samples: {'; '.join(parts)}. {level}"
