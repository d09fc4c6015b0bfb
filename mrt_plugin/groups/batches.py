"""Batch sizes, limited by the number of groups and by the size of their text."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset

Item = TypeVar("Item")

BYTES = 2**25
"""The most text per batch, in bytes (in characters if the text is not encoded). A single group may be larger."""


def batch_size(groups: Dataset, most: int) -> int:
    """Return the rows per batch with which no batch of any shard has more than about 32 MiB of text."""
    sizes = sum(_of_rows(groups, name, _bytes) for name in groups.column_names)
    # A very large row counts as half the limit, so that a few of them do not make all batches small.
    ends = np.concatenate(([0], np.cumsum(np.minimum(sizes, BYTES // 2))))
    size = max(1, min(most, len(groups)))
    while size > 1 and (ends[size:] - ends[:-size]).max() > BYTES:
        size //= 2
    return size


def pool_sizes(groups: Dataset) -> list[int]:
    """Return the number of responses of each group, without reading the responses."""
    sizes: list[int] = _of_rows(groups, "responses", lambda array: np.diff(array.offsets.to_numpy())).tolist()
    return sizes


def chunked(rows: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """Yield consecutive rows or texts in lists of at most `most`. A list also ends once its text reaches `BYTES`."""
    held: list[Item] = []
    total = 0
    for row in rows:
        held.append(row)
        total += text_size(row)
        if len(held) == most or total >= BYTES:
            yield held
            held, total = [], 0
    if held:
        yield held


def text_size(value: Any) -> int:
    """Return the number of characters in a value's strings, plus 8 for each other value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | dict):
        return sum(map(text_size, value.values() if isinstance(value, dict) else value))
    return 8


def _of_rows(groups: Dataset, column: str, measure: Callable[[pyarrow.Array], np.ndarray]) -> np.ndarray:
    """Measure the values of a column, int64 [n]."""
    parts = [measure(chunk) for chunk in groups.data.column(column).chunks]
    values = np.concatenate([np.zeros(0, np.int64), *parts])
    return values if groups._indices is None else values[groups._indices.column(0).to_numpy()]


def _bytes(array: pyarrow.Array) -> np.ndarray:
    """Return the bytes of text in each value, read from Arrow's offsets only. A number counts as 8."""
    if isinstance(array, pyarrow.ExtensionArray):
        array = array.storage
    kind = array.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        ends = np.concatenate(([0], np.cumsum(_bytes(array.values))))
        return np.diff(ends[array.offsets.to_numpy()])
    if pyarrow.types.is_struct(kind):
        return sum((_bytes(part) for part in array.flatten()), np.zeros(len(array), np.int64))
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return pyarrow.compute.fill_null(pyarrow.compute.binary_length(array), 0).to_numpy().astype(np.int64)
    return np.full(len(array), 8)
