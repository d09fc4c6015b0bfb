"""Formats with a conversation written as one text: HH-RLHF, Nectar (`\\n\\nHuman: ...`) and HelpSteer2."""

import re
from typing import Literal

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Converted, LeftOut, adapter
from mrt_plugin.groups.messages import Message, has_text

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}


class HHRow(TypedDict):
    chosen: str
    rejected: str


class Answer(TypedDict):
    answer: str
    rank: float


class NectarRow(TypedDict):
    prompt: str
    answers: list[Answer]


class HelpSteer2Row(TypedDict):
    prompt: str
    response: str
    helpfulness: float
    correctness: float
    coherence: float
    complexity: float
    verbosity: float


def parse_transcript(text: str) -> list[Message] | None:
    """Return the turns of an HH-RLHF text, or None if the human is not first or the turns do not alternate."""
    before, *parts = _TURN.split(text)
    return None if before.strip() else _turns(parts)


def _turns(parts: list[str]) -> list[Message] | None:
    """Return the turns from alternating speakers and texts, or None unless user and assistant alternate."""
    turns = [
        {"role": _ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    expected = ["user", "assistant"] * len(turns)
    return turns if turns and [turn["role"] for turn in turns] == expected[: len(turns)] else None


def _has_empty_turn(turns: list[Message]) -> bool:
    """Return whether a turn is empty, so that chat templates cannot render it sensibly."""
    return not all(has_text(turn["content"]) for turn in turns)


@adapter(prompt="chosen", responses="chosen")
def hh_rlhf(row: HHRow) -> Converted:
    """Yield one group of two responses to the conversation before the last answer: chosen (score 1), rejected (0)."""
    chosen, rejected = parse_transcript(row["chosen"]), parse_transcript(row["rejected"])
    if not chosen or not rejected:
        yield LeftOut("pairs with a transcript whose turns do not alternate")
    elif chosen[-1]["role"] != "assistant" or chosen[:-1] != rejected[:-1]:
        yield LeftOut("pairs that differ before the last answer")
    elif _has_empty_turn(chosen[:-1]):
        yield LeftOut("pairs with an empty turn")
    else:
        answers = [chosen[-1]["content"], rejected[-1]["content"]]
        yield {"prompt": chosen[:-1], "responses": answers, "scores": [1.0, 0.0]}


@adapter(responses="answers", scores="answers")
def nectar(row: NectarRow) -> Converted:
    """Yield one group. The score is the distance to the last rank, so the best answer has the highest score."""
    turns = parse_transcript(row["prompt"]) or [{"role": "user", "content": row["prompt"].strip()}]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns = turns[:-1]  # the prompt ends with `Assistant:`, and the answer follows
    if turns[-1]["role"] != "user" or _has_empty_turn(turns):
        yield LeftOut("conversations with an empty turn, or that do not end with the human's")
        return
    last = max((answer["rank"] for answer in row["answers"]), default=0.0)
    yield {
        "prompt": turns,
        "responses": [answer["answer"] for answer in row["answers"]],
        "scores": [last - answer["rank"] for answer in row["answers"]],
    }


@adapter(responses="response", scores="helpfulness")
def helpsteer2(
    row: HelpSteer2Row,
    *,
    score: Literal["mean", "helpfulness", "correctness", "coherence", "complexity", "verbosity"] = "mean",
) -> Converted:
    """Yield one response. `mean` leaves out complexity and verbosity, which do not measure quality."""
    turns = _turns(["User", *_HELPSTEER_TURN.split(row["prompt"])])
    if turns is None or len(turns) % 2 == 0 or _has_empty_turn(turns):
        yield LeftOut("responses to a conversation with an empty turn, or whose turns do not alternate")
        return
    mean = (row["helpfulness"] + row["correctness"] + row["coherence"]) / 3
    yield {"prompt": turns, "completion": row["response"], "score": mean if score == "mean" else row[score]}
