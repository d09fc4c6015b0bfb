"""Alpaca rows (tatsu-lab/stanford_alpaca), AlpacaEval outputs and gold-labelled generations (tlc4418)."""

from typing import NotRequired

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Converted, adapter


class AlpacaRow(TypedDict):
    instruction: str
    input: NotRequired[str | None]
    output: str


class AlpacaEvalRow(TypedDict):
    instruction: str
    output: str
    generator: NotRequired[str | None]


class GoldRow(TypedDict):
    instruction: str
    input: NotRequired[str | None]
    answers: list[str]
    gold_scores: list[float]


def with_input(instruction: str, given: str | None) -> str:
    """Return the prompt: the instruction, then any `input` under a heading, as in the code of arXiv 2606.00544.

    Example:

    >>> with_input("Add them.", "2, 2")
    'Add them.\\n\\nInput:\\n2, 2'
    """
    given = (given or "").strip()
    return f"{instruction.strip()}\n\nInput:\n{given}" if given else instruction


@adapter(
    "Alpaca rows, regrouped by instruction and input, without scores; read without naming the source, too",
    prompt="instruction",
    responses="output",
)
def alpaca(row: AlpacaRow) -> Converted:
    """Yield one response."""
    yield {"prompt": with_input(row["instruction"], row.get("input")), "completion": row["output"]}


@adapter(
    "AlpacaEval outputs of several models, regrouped by instruction, without scores",
    prompt="instruction",
    responses="output",
)
def alpaca_eval(row: AlpacaEvalRow) -> Converted:
    """Yield one response."""
    yield {"prompt": row["instruction"], "completion": row["output"]}


@adapter(
    "Generations with the scores of a gold reward model (`answers`, `gold_scores`)",
    prompt="instruction",
    responses="answers",
    scores="gold_scores",
)
def gold_labelled(row: GoldRow) -> Converted:
    """Yield one group."""
    prompt = with_input(row["instruction"].strip(), row.get("input"))
    yield {"prompt": prompt, "responses": row["answers"], "scores": row["gold_scores"]}
