"""The journal of a sampling run: one line per write, a JSON list of replies, on disk before the next request."""

import json
import logging
import os
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from mrt_plugin.endpoint.jobs import Draw, Reply

try:
    import fcntl
except ImportError:  # Windows: two processes that sample into the same file do not notice each other
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

VERSION = 1
SYNC_EVERY = 1.0
"""Seconds between flushes to the physical disk. A power cut loses at most this much, a killed process nothing."""


def journal_path(pool: Path) -> Path:
    return pool.with_name(f"{pool.name}.journal")


def draws_made(path: Path) -> dict[str, int]:
    """Return the number of draws of each prompt in a journal, if there is one, up to the highest."""
    made: dict[str, int] = {}
    if path.is_file():
        with path.open("rb") as file:
            for reply in (reply for line in islice(file, 1, None) for reply in _parse(line) or []):
                made[reply.key] = max(made.get(reply.key, 0), reply.start + len(reply.draws))
    return made


class Journal(AbstractContextManager["Journal"]):
    """The replies of a run, indexed by their prompt. A line that a killed process did not finish is removed."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self._places: dict[str, list[tuple[int, int, int, int]]] = {}
        self.rejected: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            try:
                if fcntl is not None:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OSError(f"{path}: another process is writing into it; write elsewhere, or wait.") from None
            self._end = self._read(settings)
            os.ftruncate(self._file, self._end)
            self._synced = time.monotonic()
            if self._end == 0:
                self._append({"journal": VERSION, "settings": settings})
        except BaseException:
            os.close(self._file)
            raise

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def have(self, key: str, first: int = 0) -> int:
        """Return the number of draws of a prompt, from draw `first` to the first missing one."""
        end = first
        for start, length, _, _ in sorted(self._places.get(key, [])):
            if start <= end:
                end = max(end, start + length)
        return end - first

    def add(self, replies: list[Reply]) -> None:
        """Write all replies or none. If the disk is full or fails, earlier writes remain."""
        self._index(replies, self._append([asdict(reply) for reply in replies]))

    def draws(self, key: str, count: int, first: int = 0) -> list[tuple[Draw, str | None]]:
        """Return up to `count` draws of a prompt from draw `first`, each with the model that the endpoint reported."""
        found: dict[int, tuple[Draw, str | None]] = {}
        for start, _, place, number in sorted(self._places.get(key, [])):
            with os.fdopen(os.dup(self._file), "rb") as file:
                file.seek(place)
                replies = _parse(file.readline())
            if replies is None:
                raise OSError(f"{self.path}: the line at byte {place} cannot be read any more. Run the command again.")
            reply = replies[number]
            for index, draw in enumerate(reply.draws, start=start):
                found.setdefault(index, (draw, reply.model))
        return [found[first + index] for index in range(min(count, self.have(key, first)))]

    def _read(self, settings: dict[str, Any]) -> int:
        """Index the lines and return the length of the complete part; 0 to restart a journal without draws."""
        place, made = 0, settings
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    logger.warning("%s: the last line was not finished when the run was stopped; dropped.", self.path)
                    break
                if place == 0:
                    made = self._header(line)
                elif (replies := _parse(line)) is not None:
                    self._index(replies, place)
                else:
                    logger.warning("%s: a damaged line at byte %d is skipped.", self.path, place)
                place += len(line)
        changed = [name for name in {**made, **settings} if made.get(name) != settings.get(name)]
        if changed and self._places:
            how = ", ".join(f"{name} was {made.get(name)!r} and is {settings.get(name)!r}" for name in changed)
            what = f"it holds draws made with other settings ({how})"
            raise ValueError(f"{self.path}: {what}. Choose another output, or remove it.")
        if changed:
            self.rejected.clear()
        return 0 if changed else place

    def _header(self, line: bytes) -> dict[str, Any]:
        with suppress(ValueError, KeyError, TypeError):
            header = json.loads(line)
            if header["journal"] == VERSION:
                return dict(header["settings"])
        what = f"this is not the journal of a sampling run of version {VERSION}"
        raise ValueError(f"{self.path}: {what}; remove it, or write elsewhere.")

    def _index(self, replies: list[Reply], place: int) -> None:
        for number, reply in enumerate(replies):
            if reply.rejected is not None:
                self.rejected[reply.key] = reply.rejected
            elif reply.draws:
                self._places.setdefault(reply.key, []).append((reply.start, len(reply.draws), place, number))

    def _append(self, value: Any) -> int:
        """Write one line and return its position. Remove the line again if the disk is full."""
        line = json.dumps(value, allow_nan=False).encode() + b"\n"
        place, left = self._end, line
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as problem:
            os.ftruncate(self._file, place)
            what = f"{problem.strerror}: what was drawn so far is kept"
            raise OSError(problem.errno, what, str(self.path)) from problem
        self._end += len(line)
        if time.monotonic() - self._synced >= SYNC_EVERY:
            os.fsync(self._file)
            self._synced = time.monotonic()
        return place


def _parse(line: bytes) -> list[Reply] | None:
    """Return the replies in a line, or None if the line is damaged."""
    try:
        return [Reply(**{**reply, "draws": [Draw(**draw) for draw in reply["draws"]]}) for reply in json.loads(line)]
    except (ValueError, KeyError, TypeError):
        return None
