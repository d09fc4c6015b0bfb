"""Nectar (berkeley-nest/Nectar): seven answers per conversation, ranked by GPT-4 (1 is the best)."""

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted, LeftOut
from mrt_plugin.groups.adapters.transcript import has_empty_turn, parse_transcript


class Answer(TypedDict):
    answer: str
    rank: float


class NectarRow(TypedDict):
    prompt: str
    answers: list[Answer]


def convert(row: NectarRow) -> Converted:
    """Yield one group. The score is the distance to the last rank, so the best answer has the highest score."""
    turns = parse_transcript(row["prompt"]) or [{"role": "user", "content": row["prompt"].strip()}]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns = turns[:-1]  # the prompt ends with `Assistant:`, and the answer follows
    if turns[-1]["role"] != "user" or has_empty_turn(turns):
        yield LeftOut("conversations with an empty turn, or that do not end with the human's")
        return
    last = max((answer["rank"] for answer in row["answers"]), default=0.0)
    yield {
        "prompt": turns,
        "responses": [answer["answer"] for answer in row["answers"]],
        "scores": [last - answer["rank"] for answer in row["answers"]],
    }


NECTAR = Adapter(
    "nectar",
    "Nectar: seven ranked answers per conversation; the score is the number of ranks below",
    NectarRow,
    convert,
    {"responses": "answers", "scores": "answers"},
)
