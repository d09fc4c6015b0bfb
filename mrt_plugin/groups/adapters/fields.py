"""Any other format, described by its fields: `fields:prompt=question,responses=candidates.text`."""

from typing import Any

from mrt_plugin.groups.adapters.adapter import Converted, Mismatch, adapter
from mrt_plugin.groups.messages import kind


@adapter()
def fields(
    row: dict[str, Any],
    *,
    prompt: str,
    responses: str = "",
    completion: str = "",
    scores: str = "",
    score: str = "",
    weights: str = "",
    weight: str = "",
    id: str = "",
) -> Converted:
    """Yield a group (`responses`) or one response of it (`completion`) from the fields that the options name.

    A name with dots is a path, which is followed into each item of a list: `answers.text`.
    """
    if bool(responses) == bool(completion):
        raise ValueError(
            "source 'fields' needs either responses= (rows that hold a pool) or completion= (rows of one response)."
        )
    names = {"prompt": prompt, "responses": responses, "scores": scores, "weights": weights}
    if completion:
        names = {"prompt": prompt, "completion": completion, "score": score, "weight": weight}
    yield {ours: _find(row, name) for ours, name in (names | {"id": id}).items() if name}


def _find(row: dict[str, Any], name: str) -> Any:
    if name in row:  # a field name may itself contain dots
        return row[name]
    value: Any = row
    keys = name.split(".")
    for step, key in enumerate(keys):
        value = _step(value, key, name, ".".join(keys[:step]))
    return value


def _step(value: Any, key: str, name: str, walked: str) -> Any:
    if isinstance(value, list):
        return [_step(item, key, name, walked) for item in value]
    first = name.split(".")[0]
    if not isinstance(value, dict):
        raise Mismatch(first, f"`{walked}` is {kind(value)}, so that `{name}` leads nowhere.")
    if key not in value:
        where = f"`{walked}` has no `{key}`; it has" if walked else "the field is missing; the row has"
        raise Mismatch(first, f"{where} {', '.join(f'`{other}`' for other in value) or 'no fields'}.")
    return value[key]
