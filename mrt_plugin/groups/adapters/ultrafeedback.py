"""UltraFeedback (openbmb/UltraFeedback): four completions per instruction, rated by GPT-4 overall and by aspect."""

import math
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted, LeftOut

Completion = TypedDict(
    "Completion",
    {
        "response": str,
        "overall_score": NotRequired[float | None],
        "fine-grained_score": NotRequired[float | None],
        "annotations": NotRequired[dict[str, Any] | None],
    },
)
Score = Literal["overall", "fine_grained", "helpfulness", "honesty", "instruction_following", "truthfulness"]


class UltraFeedbackRow(TypedDict):
    instruction: str
    completions: list[Completion]


def convert(row: UltraFeedbackRow, *, score: Score = "overall") -> Converted:
    """Yield one group. Skip completions that GPT-4 did not give the requested score."""
    responses, scores = [], []
    for completion in row["completions"]:
        value = _score(completion, score)
        if value is None:
            yield LeftOut(f"completions without the score `{score}`")
        else:
            responses.append(completion["response"])
            scores.append(value)
    yield {"prompt": row["instruction"], "responses": responses, "scores": scores}


def _score(completion: Any, which: Score) -> float | None:
    if which == "overall":
        value = completion.get("overall_score")
    elif which == "fine_grained":
        value = completion.get("fine-grained_score")
    else:
        rating = str(((completion.get("annotations") or {}).get(which) or {}).get("Rating"))
        value = float(rating) if rating.replace(".", "", 1).isdecimal() else None  # GPT-4 also wrote `N/A`
    return None if value is None or math.isnan(value) else value


ULTRAFEEDBACK = Adapter(
    "ultrafeedback",
    "UltraFeedback: completions with their overall score (1 to 10), or the fine-grained one (1 to 5)",
    UltraFeedbackRow,
    convert,
    {"prompt": "instruction", "responses": "completions", "scores": "completions"},
)
