"""Alpaca (tatsu-lab/stanford_alpaca) and AlpacaEval outputs (tatsu-lab/alpaca_eval): one row per response."""

from typing import NotRequired

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted


class AlpacaRow(TypedDict):
    instruction: str
    input: NotRequired[str | None]
    output: str


class AlpacaEvalRow(TypedDict):
    instruction: str
    output: str
    generator: NotRequired[str | None]


def with_input(instruction: str, given: str | None) -> str:
    """Return the prompt: the instruction, then any `input` under a heading, as in the code of arXiv 2606.00544.

    Example:

    >>> with_input("Add them.", "2, 2")
    'Add them.\\n\\nInput:\\n2, 2'
    """
    given = (given or "").strip()
    return f"{instruction.strip()}\n\nInput:\n{given}" if given else instruction


def convert(row: AlpacaRow) -> Converted:
    """Yield one response. Responses are regrouped later by instruction and input."""
    yield {"prompt": with_input(row["instruction"], row.get("input")), "completion": row["output"]}


ALPACA = Adapter(
    "alpaca",
    "Alpaca rows, regrouped by instruction and input, without scores; read without naming the source, too",
    AlpacaRow,
    convert,
    {"prompt": "instruction", "responses": "output"},
)
ALPACA_EVAL = Adapter(
    "alpaca_eval",
    "AlpacaEval outputs of several models, regrouped by instruction, without scores",
    AlpacaEvalRow,
    convert,
    {"prompt": "instruction", "responses": "output"},
)
