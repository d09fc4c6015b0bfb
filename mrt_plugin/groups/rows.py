"""Remove or replace responses of groups directly in Arrow's buffers, without decoding."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
from datasets import Dataset, Features, Value, concatenate_datasets

from mrt_plugin.groups.batches import batch_size
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.write import arrow_table

PER_RESPONSE = ("responses", "scores", "weights", "finish_reasons")
"""The columns with one item per response. A dataset may lack some of them."""


def keep_responses(
    groups: Dataset, kept: Sequence[Sequence[int]], changed: Mapping[tuple[int, int], Any] | None = None
) -> Dataset:
    """Keep the responses `kept[group]`, ascending. `changed` has new ones by (group, index)."""
    changed = changed or {}
    encoding = Features({"response": groups.features["responses"].feature})

    def keep(table: pyarrow.Table, indices: list[int]) -> pyarrow.Table:
        places = [(index, item) for index in indices for item in kept[index]]
        ends = pyarrow.array(np.cumsum([0, *(len(kept[index]) for index in indices)]), type=pyarrow.int32())
        for name in filter(table.column_names.__contains__, PER_RESPONSE):
            column = table.column(name).combine_chunks()
            starts = dict(zip(indices, column.offsets.to_numpy()[:-1], strict=True))
            items = [starts[index] + item for index, item in places]
            values = column.values
            new = {place: changed[place] for place in places if place in changed} if name == "responses" else {}
            if new:
                # New texts are appended to the old ones, and then picked in the same way.
                behind = dict(zip(new, range(len(values), len(values) + len(new)), strict=True))
                items = [behind.get(place, item) for place, item in zip(places, items, strict=True)]
                encoded = arrow_table([{"response": response} for response in new.values()], encoding)
                values = pyarrow.concat_arrays([values, encoded.column("response").combine_chunks()])
            taken = values.take(pyarrow.array(items, pyarrow.int64()))
            lists = pyarrow.ListArray.from_arrays(ends, taken, type=column.type)
            table = table.set_column(table.column_names.index(name), name, lists)
        return table

    content = json.dumps([kept, sorted(changed.items())]).encode()
    mapped = groups.with_format("arrow").map(
        keep,
        with_indices=True,
        batched=True,
        batch_size=batch_size(groups, 1000),
        features=groups.features,
        new_fingerprint=digest(groups._fingerprint.encode(), content).hex(),
        desc="Keeping responses",
    )
    return mapped.with_format(None)


def repeat_groups(groups: Dataset, positions: Sequence[int]) -> Dataset:
    """Return the groups at `positions`, in that order. The second copy of a group has an id ending in `#2`, etc."""
    repeated = groups.select(positions)
    if len(set(positions)) == len(positions):
        return repeated
    seen: dict[int, int] = {}
    ids = []
    for position, name in zip(positions, repeated["id"], strict=True):
        seen[position] = seen.get(position, 0) + 1
        ids.append(name if seen[position] == 1 else f"{name}#{seen[position]}")
    taken = set(groups["id"])
    clash = next((name for name in ids if "#" in name and name in taken), None)
    if clash is not None:
        raise ValueError(f"a copy of a group would be named {clash!r}, which is the id of another: rename that one.")
    return with_column(repeated, "id", ids, Value("string"))


def with_column(groups: Dataset, name: str, values: Sequence[Any], feature: Any) -> Dataset:
    """Return the groups with a new column, or with other values in the place of the old one."""
    columns = list(dict.fromkeys([*groups.column_names, name]))
    others = groups.select_columns([column for column in columns if column != name])
    added = Dataset.from_dict({name: values}, features=Features({name: feature}))
    return concatenate_datasets([others, added], axis=1).select_columns(columns)
