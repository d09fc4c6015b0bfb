"""The source `fields`: the user names the fields of a format of their own."""

import re
from typing import Any

from mrt_plugin.groups.adapters.adapter import Converted, LeftOut, Mismatch, adapter
from mrt_plugin.groups.adapters.conversations import as_messages
from mrt_plugin.groups.messages import has_text, kind


@adapter()
def fields(
    row: dict[str, Any],
    *,
    prompt: str = "",
    responses: str = "",
    completion: str = "",
    messages: str = "",
    scores: str = "",
    score: str = "",
    weights: str = "",
    weight: str = "",
    id: str = "",
) -> Converted:
    """Yield a group or one response from the named fields. A dotted path goes into each item of a list.

    A `*` in a name stands for a number: the fields that match are one list, in the order of their numbers.
    """
    if sum(map(bool, (responses, completion, messages))) != 1:
        what = "either responses= (rows with a pool), completion= (one response) or messages= (a conversation)"
        raise ValueError(f"source 'fields' needs {what}.")
    if not prompt and not messages:
        raise ValueError("source 'fields' needs prompt= beside responses= or completion=.")
    if messages:
        found = as_messages(messages, find_field(row, messages))
        yield {"messages": found, **_read(row, {"score": score, "weight": weight, "id": id})}
    elif completion:
        yield _read(row, {"prompt": prompt, "completion": completion, "score": score, "weight": weight, "id": id})
    elif "*" not in responses:
        names = {"prompt": prompt, "responses": responses, "scores": scores, "weights": weights, "id": id}
        yield _read(row, names)
    else:
        pool = _numbered(row, responses)
        if len(pool) == 1:
            only = responses.replace("*", str(*pool))
            what = f"`{responses}` matches `{only}` alone, and a pool has several responses: write completion={only}."
            raise Mismatch(only.split(".")[0], what)
        kept = [number for number, response in pool.items() if not _is_blank(response)]
        for _ in range(len(pool) - len(kept)):
            yield LeftOut(f"empty responses of `{responses}`")
        group = _read(row, {"prompt": prompt, "id": id}) | {"responses": [pool[number] for number in kept]}
        for ours, name in (("scores", scores), ("weights", weights)):
            if "*" in name:
                values = _numbered(row, name)
                if values.keys() != pool.keys():
                    what = f"`{name}` has the numbers {_listed(values)}, but `{responses}` has {_listed(pool)}."
                    raise Mismatch(name.split(".")[0], what)
                group[ours] = [values[number] for number in kept]
            elif name:
                what = f"`{name}` has no `*`, but `{responses}` has: name a field for each response."
                raise Mismatch(name.split(".")[0], what)
        yield group


def _read(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return our names of the fields with their values."""
    return {ours: find_field(row, name) for ours, name in names.items() if name}


def _is_blank(response: Any) -> bool:
    return response is None or (isinstance(response, str) and not has_text(response))


def _listed(values: dict[int, Any]) -> str:
    return ", ".join(map(str, values))


def _numbered(row: dict[str, Any], name: str) -> dict[int, Any]:
    """Return the values of the fields that a name with one `*` matches, by their numbers, ascending."""
    if name.count("*") != 1:
        raise ValueError(f"source 'fields': write one * in {name!r}, for the number.")
    before, _, after = name.partition("*")
    steps = before.split(".")
    # The `*` is in one key of a dotted path: the path before it leads to an object, the path after it into each value.
    outer, inner = steps[:-1], after.split(".")[1:]
    pattern = re.compile(re.escape(steps[-1]) + r"(\d+)" + re.escape(after.split(".")[0]))
    holder = find_field(row, ".".join(outer)) if outer else row
    first = name.split(".")[0]
    if not isinstance(holder, dict):
        raise Mismatch(first, f"`{'.'.join(outer)}` is {kind(holder)}, so that `{name}` leads nowhere.")
    found: dict[int, Any] = {}
    for key, value in holder.items():
        if matched := pattern.fullmatch(key):
            number = int(matched[1])
            if number in found:
                raise Mismatch(first, f"two fields that match `{name}` have the number {number}.")
            for step in inner:
                value = _step(value, step, name, key)
            found[number] = value
    if not found:
        has = ", ".join(f"`{key}`" for key in holder) or "no fields"
        raise Mismatch(first, f"no field matches `{name}`, where * is a number; there are {has}.")
    return dict(sorted(found.items()))


def find_field(row: dict[str, Any], name: str) -> Any:
    """Return the value at a name or a dotted path, or raise Mismatch with what is there instead."""
    if "*" in name:
        return list(_numbered(row, name).values())
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
