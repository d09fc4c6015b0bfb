"""HelpSteer2 (nvidia/HelpSteer2): one row per response, rated 0 to 4 on five attributes. Two rows share a prompt."""

import re
from typing import Literal

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted, LeftOut
from mrt_plugin.groups.adapters.transcript import has_empty_turn

TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
Score = Literal["mean", "helpfulness", "correctness", "coherence", "complexity", "verbosity"]


class HelpSteer2Row(TypedDict):
    prompt: str
    response: str
    helpfulness: float
    correctness: float
    coherence: float
    complexity: float
    verbosity: float


def convert(row: HelpSteer2Row, *, score: Score = "mean") -> Converted:
    """Yield one response.

    `mean` averages helpfulness, correctness and coherence. The other two attributes do not measure quality.
    """
    first, *parts = TURN.split(row["prompt"])
    turns = [{"role": "user", "content": first.strip()}]
    turns += [
        {"role": role.lower(), "content": said.strip()} for role, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    expected = ["user", "assistant"] * len(turns)
    if [turn["role"] for turn in turns] != expected[: len(turns)] or len(turns) % 2 == 0 or has_empty_turn(turns):
        yield LeftOut("responses to a conversation with an empty turn, or whose turns do not alternate")
        return
    mean = (row["helpfulness"] + row["correctness"] + row["coherence"]) / 3
    yield {"prompt": turns, "completion": row["response"], "score": mean if score == "mean" else row[score]}


HELPSTEER2 = Adapter(
    "helpsteer2",
    "HelpSteer2: rows regrouped by prompt; the score is one of five attributes, or the mean of the first three",
    HelpSteer2Row,
    convert,
    {"responses": "response", "scores": "helpfulness"},
)
