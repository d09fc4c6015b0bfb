"""TRL's dataset types: preference (explicit or implicit prompt) and prompt-completion (with or without label).

Both hold strings or conversations: https://huggingface.co/docs/trl/dataset_formats
"""

from typing import Any, NotRequired

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Converted, Mismatch, adapter

Said = str | list[dict[str, Any]]


class PreferenceRow(TypedDict):
    prompt: NotRequired[Said | None]
    chosen: Said
    rejected: Said
    score_chosen: NotRequired[float | None]
    score_rejected: NotRequired[float | None]


class CompletionRow(TypedDict):
    prompt: Said
    completion: Said
    label: NotRequired[bool | None]
    score: NotRequired[float | None]
    weight: NotRequired[float | None]


@adapter(responses="chosen", scores="score_chosen")
def trl_preference(row: PreferenceRow) -> Converted:
    """Yield one group of two. The scores are `score_chosen` and `score_rejected` if given, else 1 and 0."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Mismatch("rejected", "one of chosen and rejected is a string, the other a list of messages.")
    conversations = [side for side in (chosen, rejected) if isinstance(side, list)]
    answers = [side for side in conversations if side and side[0].get("role") == "assistant"]
    if len(answers) < len(conversations) or (not conversations and prompt is None):
        length = _prompt_length(chosen, rejected)
        prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    if not prompt:
        raise Mismatch("prompt", "there is none, and chosen and rejected have no beginning in common.")
    scores = [row.get("score_chosen"), row.get("score_rejected")]
    yield {"prompt": prompt, "responses": [chosen, rejected], "scores": [1.0, 0.0] if None in scores else scores}


def _prompt_length(chosen: Any, rejected: Any) -> int:
    """Return the length of the common beginning, up to a space, or without an answer at the end of its messages."""
    pairs = zip(chosen, rejected, strict=False)
    length = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(chosen), len(rejected)))
    while length:
        last = chosen[length - 1]
        if last.isspace() if isinstance(last, str) else last.get("role") != "assistant":
            break
        length -= 1
    return length


@adapter(responses="completion", scores="score", weights="weight")
def trl_completion(row: CompletionRow) -> Converted:
    """Yield one response. A `label` becomes the score 1 or 0."""
    score, label = row.get("score"), row.get("label")
    if score is None and label is not None:
        score = float(label)
    yield {"prompt": row["prompt"], "completion": row["completion"], "score": score, "weight": row.get("weight")}
