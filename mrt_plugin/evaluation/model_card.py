"""Show an evaluation in a model card, as Markdown."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mrt_plugin.evaluation.evaluate_report import (
    difference_rows,
    forgetting_rows,
    judged_rows,
    measure_rows,
)
from mrt_plugin.evaluation.result import Evaluation, ModelResult
from mrt_plugin.markdown import markdown_table


def read_evaluation(path: str | Path) -> Evaluation:
    """Read what `mrt evaluate --json` printed. ValueError for another file."""
    try:
        return TypeAdapter(Evaluation).validate_json(Path(path).read_bytes())
    except ValidationError as problem:
        place = ".".join(map(str, problem.errors()[0]["loc"])) or "it"
        raise ValueError(
            f"{path} is not a result of `mrt evaluate --json`: {place}: {problem.errors()[0]['msg']}."
        ) from None


def model_of(result: Evaluation, folder: Path, name: str | None = None) -> ModelResult:
    """Return the model of a result that is in a folder, or that has a name. ValueError if there is none."""
    if name is not None:
        found = [model for model in result.models if model.name == name]
    else:
        found = [model for model in result.models if folder.resolve() in _folders(model)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{model.name} ({model.adapter or model.path or model.pool})" for model in result.models)
    missing = f"--model {name}" if name is not None else str(folder)
    raise ValueError(
        f"the evaluation has {'several models' if found else 'no model'} of {missing}. It has {names}. Say which "
        "one it is: --model NAME."
    )


def _folders(model: ModelResult) -> list[Path]:
    """Return the folder of a model's own weights: of its adapter, if it has one."""
    own = model.adapter or model.path
    return [] if own is None else [Path(own).expanduser().resolve()]


def card_section(result: Evaluation, model: ModelResult) -> str:
    """Return the section on an evaluation in the card of one of its models."""
    data, level = result.data, f"{result.intervals['level']:.0%}"
    lines = [
        "## Evaluation",
        "",
        f"On {data.prompts:,} held-out prompts of {Path(data.name).name}, of which {data.with_references:,} have "
        f"references, by `mrt evaluate`. This model is *{model.name}*. In parentheses are {level} intervals.",
        "",
        *markdown_table(*measure_rows(result)),
    ]
    if model.name in result.others:
        lines += ["", *markdown_table(*difference_rows(result, model.name))]
    judged = [row for row in result.judged if row.model == model.name]
    if judged:
        lines += ["", *markdown_table(*judged_rows(result))]
    for forgot in (row for row in result.forgetting if row.model == model.name):
        lines += ["", "What it lost of general ability, in points:", "", *markdown_table(*forgetting_rows(forgot))]
    return "\n".join([*lines, *([""] if result.notes else []), *(f"- {note}" for note in result.notes)])
