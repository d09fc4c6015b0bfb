"""Gold-labelled generations (tlc4418/gold_labelled_gens): many answers per instruction, scored by a reward model."""

from typing import NotRequired

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted, Mismatch


class GoldRow(TypedDict):
    instruction: str
    input: NotRequired[str | None]
    answers: list[str]
    gold_scores: list[float]


def convert(row: GoldRow) -> Converted:
    """One group. An `input` follows the instruction under a heading, as in the code of arXiv 2606.00544."""
    if len(row["answers"]) != len(row["gold_scores"]):
        raise Mismatch("gold_scores", f"{len(row['gold_scores'])} scores for {len(row['answers'])} answers.")
    given = (row.get("input") or "").strip()
    instruction = row["instruction"].strip()
    yield {
        "prompt": f"{instruction}\n\nInput:\n{given}" if given else instruction,
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
