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


@adapter(
    "TRL preference sets (`chosen`, `rejected`, mostly with `prompt`): a group of two with the scores 1 and 0",
    responses="chosen",
    scores="score_chosen",
)
def trl_preference(row: PreferenceRow) -> Converted:
    """Yield one group of two. The scores are `score_chosen` and `score_rejected` if given, else 1 and 0."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Mismatch("rejected", "one of chosen and rejected is a string, the other a list of messages.")
    prompt = row.get("prompt")
    if isinstance(chosen, list) and isinstance(rejected, list):
        if not (_starts_with_answer(chosen) and _starts_with_answer(rejected)):
            prompt, chosen, rejected = _split_messages(chosen, rejected)
    elif prompt is None:
        prompt, chosen, rejected = _split_strings(str(chosen), str(rejected))
    if not prompt:
        raise Mismatch("prompt", "there is none, and chosen and rejected have no beginning in common.")
    scores = [row.get("score_chosen"), row.get("score_rejected")]
    yield {"prompt": prompt, "responses": [chosen, rejected], "scores": [1.0, 0.0] if None in scores else scores}


@adapter(
    "TRL prompt-completion sets, regrouped by prompt; a `label` (unpaired preference) becomes the score 1 or 0",
    responses="completion",
    scores="score",
    weights="weight",
)
def trl_completion(row: CompletionRow) -> Converted:
    """Yield one response. A `label` becomes the score 1 or 0."""
    score, label = row.get("score"), row.get("label")
    if score is None and label is not None:
        score = float(label)
    yield {"prompt": row["prompt"], "completion": row["completion"], "score": score, "weight": row.get("weight")}


def _starts_with_answer(messages: list[dict[str, Any]]) -> bool:
    return bool(messages) and messages[0].get("role") == "assistant"


def _split_messages(chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Split off an implicit prompt: the common messages, without an answer at their end."""
    length = 0
    while length < min(len(chosen), len(rejected)) and chosen[length] == rejected[length]:
        length += 1
    while length and chosen[length - 1].get("role") == "assistant":
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


def _split_strings(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split off an implicit prompt: the common beginning up to a space, so that no word is cut."""
    length = 0
    for index, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if one != other:
            break
        if one.isspace():
            length = index + 1
    return chosen[:length], chosen[length:], rejected[length:]
