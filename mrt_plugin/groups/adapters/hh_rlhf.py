"""HH-RLHF (Anthropic/hh-rlhf): two transcripts that differ in the assistant's last answer. One is preferred."""

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted, LeftOut
from mrt_plugin.groups.adapters.transcript import has_empty_turn, parse_transcript


class HHRow(TypedDict):
    chosen: str
    rejected: str


def convert(row: HHRow) -> Converted:
    """Yield one group of two responses to the conversation before the last answer: chosen (score 1), rejected (0)."""
    chosen, rejected = parse_transcript(row["chosen"]), parse_transcript(row["rejected"])
    if not chosen or not rejected:
        yield LeftOut("pairs with a transcript whose turns do not alternate")
    elif chosen[-1]["role"] != "assistant" or chosen[:-1] != rejected[:-1]:
        yield LeftOut("pairs that differ before the last answer")
    elif has_empty_turn(chosen[:-1]):
        yield LeftOut("pairs with an empty turn")
    else:
        answers = [chosen[-1]["content"], rejected[-1]["content"]]
        yield {"prompt": chosen[:-1], "responses": answers, "scores": [1.0, 0.0]}


HH_RLHF = Adapter(
    "hh_rlhf",
    "HH-RLHF: chosen and rejected transcripts; a group of two with the scores 1 and 0",
    HHRow,
    convert,
    {"prompt": "chosen", "responses": "chosen"},
)
