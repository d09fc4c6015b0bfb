"""How many groups to hold at once: bounded by their number and, where they are large, by their text."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset

BYTES = 2**25
"""Text held at once, in bytes (in characters where it is not encoded). A single group may be larger."""

Item = TypeVar("Item")


def batch_size(groups: Dataset, most: int) -> int:
    """The rows that a batch may have, so that no batch holds more than about 32 MiB of text.

    It bounds every run of consecutive rows, so it holds for any shard. A row above half of the bound counts as half:
    a few giants do not make all batches small.

    Args:
        groups: the columns that will be read.
        most: rows per batch where they are small.
    """
    sizes = sum(_of_rows(groups, name, _bytes) for name in groups.column_names)
    ends = np.concatenate(([0], np.cumsum(np.minimum(sizes, BYTES // 2))))
    size = max(1, min(most, len(groups)))
    while size > 1 and (ends[size:] - ends[:-size]).max() > BYTES:
        size //= 2
    return size


def pool_sizes(groups: Dataset) -> list[int]:
    """How many responses each group has, without reading them."""
    sizes: list[int] = _of_rows(groups, "responses", _lengths).tolist()
    return sizes


def chunked(items: Iterable[Item], most: int, size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Consecutive items in lists of at most `most`, each ended by the item with which its sizes reach the bound."""
    held: list[Item] = []
    total = 0
    for item in items:
        held.append(item)
        total += size(item)
        if len(held) == most or total >= BYTES:
            yield held
            held, total = [], 0
    if held:
        yield held


def text_size(value: Any) -> int:
    """The characters in a value's strings, and 8 for anything else.

    Example:

    >>> text_size({"prompt": "2 + 2?", "responses": ["4", "Four."], "scores": [1.0, 0.5]})
    28
    """
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | dict):
        return sum(map(text_size, value.values() if isinstance(value, dict) else value))
    return 8


def _of_rows(groups: Dataset, column: str, measure: Callable[[pyarrow.Array], np.ndarray]) -> np.ndarray:
    """A measure of a column's values, int64 [n]."""
    parts = [measure(chunk) for chunk in groups.data.column(column).chunks]
    values = np.concatenate([np.zeros(0, np.int64), *parts])
    return values if groups._indices is None else values[groups._indices.column(0).to_numpy()]


def _lengths(array: pyarrow.Array) -> np.ndarray:
    lengths: np.ndarray = np.diff(array.offsets.to_numpy()).astype(np.int64)
    return lengths


def _bytes(array: pyarrow.Array) -> np.ndarray:
    """The bytes of text in each value, read from offsets alone; 8 for a number."""
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
