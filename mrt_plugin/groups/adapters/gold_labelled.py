"""Gold-labelled generations (tlc4418/gold_labelled_gens): many answers per instruction, scored by a reward model."""

from typing import NotRequired

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted, Mismatch
from mrt_plugin.groups.adapters.alpaca import with_input


class GoldRow(TypedDict):
    instruction: str
    input: NotRequired[str | None]
    answers: list[str]
    gold_scores: list[float]


def convert(row: GoldRow) -> Converted:
    """Yield one group."""
    if len(row["answers"]) != len(row["gold_scores"]):
        raise Mismatch("gold_scores", f"{len(row['gold_scores'])} scores for {len(row['answers'])} answers.")
    yield {
        "prompt": with_input(row["instruction"].strip(), row.get("input")),
        "responses": row["answers"],
        "scores": row["gold_scores"],
    }


GOLD_LABELLED = Adapter(
    "gold_labelled",
    "Generations with the scores of a gold reward model (`answers`, `gold_scores`)",
    GoldRow,
    convert,
    {"prompt": "instruction", "responses": "answers", "scores": "gold_scores"},
)
