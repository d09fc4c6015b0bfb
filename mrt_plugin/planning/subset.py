"""Find which responses of a pool a selection kept."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from mrt_plugin.groups.keys import canonical, prompt_key
from mrt_plugin.groups.problems import Problems


@dataclass(frozen=True)
class Kept:
    """One selected group."""

    row: int
    """Row of the group in the pool."""
    places: list[int]
    """Indices of the kept responses in the pool's group, in rising order."""


def match(selection: Dataset, pool: Dataset, name: str = "the selection") -> list[Kept]:
    """Find every selected response in the pool.

    Groups are matched by id, or by prompt if no id matches. Responses are matched by their text. `name` names the
    selection in messages.

    Raises:
        DataError: if groups or responses are not in the pool; lists up to 20.
    """
    by_id = {group_id: row for row, group_id in enumerate(pool["id"])}
    by_prompt = {prompt_key(prompt): row for row, prompt in enumerate(pool["prompt"])}
    problems, found = Problems(name), []
    for number, group in enumerate(selection):
        row = by_id.get(group["id"], by_prompt.get(prompt_key(group["prompt"])))
        if row is None:
            problems.add(f"row {number}", "prompt", f"no group of the pool has the id {group['id']!r} or this prompt.")
            continue
        places, missing = _places(group, pool[row])
        for index in missing:
            problems.add(
                f"row {number}",
                "responses",
                f"response {index} is not in the pool's group {pool[row]['id']!r}: a selection must be a subset. If "
                "curation changed it, audit against the curated pool.",
            )
        found.append(Kept(row, sorted(places)))
    problems.raise_any()
    return found


def _places(group: dict[str, Any], pool: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return where the group's responses are in the pool, and which are missing. Scores tell equal responses apart."""
    free: dict[bytes, list[int]] = defaultdict(list)
    for place, response in enumerate(pool["responses"]):
        free[canonical(response)].append(place)
    places, missing = [], []
    for index, response in enumerate(group["responses"]):
        copies = free[canonical(response)]
        if not copies:
            missing.append(index)
            continue
        best = copies[0]
        if group.get("scores") and pool.get("scores"):
            best = min(copies, key=lambda place: abs(pool["scores"][place] - group["scores"][index]))
        copies.remove(best)
        places.append(best)
    return places, missing
