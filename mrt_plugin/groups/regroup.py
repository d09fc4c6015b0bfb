"""Collect rows that belong together in bounded memory. What exceeds the bound is written to a temporary file."""

import pickle
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import datasets

from mrt_plugin.groups.write import scratch_file

HELD = 2**27
"""The most bytes of rows in memory before they are written to disk."""

SETS = 512
"""How many consecutive sets share a part of the file. One part is in memory while it is read."""


def scratch_folder() -> Path:
    """Return the folder of the groups that were read, on a disk with room for them."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "mrt_groups"


class Collector:
    """A context manager that collects items by key, and then yields the items of each key together.

    Keys come in the order of their first item, and the items of a key in the order of `add`. The items are pickled to
    one temporary file. For each part of it, only the places of its pieces are in memory, beside a number for each key.
    """

    def __init__(self, *, held: int = HELD, sets: int = SETS) -> None:
        self.held, self.sets = held, sets
        self._numbers: dict[bytes, int] = {}
        self._records: dict[int, list[bytes]] = {}
        self._pieces: dict[int, list[tuple[int, int]]] = {}
        self._size = 0
        self._open = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Collector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def __contains__(self, key: bytes) -> bool:
        return key in self._numbers

    def add(self, key: bytes, item: Any) -> None:
        """Add an item of any type that can be pickled."""
        number = self._numbers.setdefault(key, len(self._numbers))
        record = pickle.dumps((number, item), protocol=pickle.HIGHEST_PROTOCOL)
        self._records.setdefault(number // self.sets, []).append(record)
        self._size += len(record)
        if self._size > self.held:
            self._write()

    def _write(self) -> None:
        """Append the records of each part to the file as one piece."""
        if self._file is None:
            self._file = self._open.enter_context(scratch_file(scratch_folder()))
        for part, records in self._records.items():
            self._pieces.setdefault(part, []).append((self._file.tell(), len(records)))
            self._file.writelines(records)
        self._records.clear()
        self._size = 0

    def __iter__(self) -> Iterator[list[Any]]:
        for part in range(-(-len(self._numbers) // self.sets)):
            found: dict[int, list[Any]] = {}
            for number, item in self._items(part):
                found.setdefault(number, []).append(item)
            yield from found.values()

    def _items(self, part: int) -> Iterable[tuple[int, Any]]:
        for place, count in self._pieces.pop(part, []):
            assert self._file is not None
            self._file.seek(place)
            for _ in range(count):
                yield pickle.load(self._file)
        yield from map(pickle.loads, self._records.pop(part, []))
