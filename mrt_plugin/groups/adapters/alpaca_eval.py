"""AlpacaEval outputs (tatsu-lab/alpaca_eval, `model_outputs.json`): a row per model and instruction."""

from typing import NotRequired

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted


class AlpacaEvalRow(TypedDict):
    instruction: str
    output: str
    generator: NotRequired[str | None]


def convert(row: AlpacaEvalRow) -> Converted:
    """One response, to be regrouped by instruction: the files of several models in one make a pool."""
    yield {"prompt": row["instruction"], "completion": row["output"]}


ALPACA_EVAL = Adapter(
    "alpaca_eval",
    "AlpacaEval outputs of several models, regrouped by instruction, without scores",
    AlpacaEvalRow,
    convert,
    {"prompt": "instruction", "responses": "output"},
)
