"""The cache of vectors and scores: one SQLite file, shared by processes, with a checksum for every entry."""

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from mrt_plugin.groups.keys import digest

logger = logging.getLogger(__name__)

WAIT_SECONDS = 120
"""Seconds to wait for another process that is writing."""
_AT_ONCE = 500
"""Number of keys looked up in one query; SQLite allows at least 999."""


class CacheError(OSError):
    """The cache cannot be read or written. The message names the file and says what to do."""


entry_key = partial(digest, size=16)
"""Return the key of a result, computed from the content that the result depends on."""


def cache_directory(directory: str | Path | None = None) -> Path:
    """Return the cache's directory: `directory`, else $MRT_CACHE, else `mrt-plugin` in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("MRT_CACHE") or None if directory is None else directory
    if given is not None:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mrt-plugin"


def cache_file(directory: str | Path | None = None) -> Path:
    return cache_directory(directory) / "scores.sqlite3"


class ScoreCache:
    """A persistent file of float32 arrays by key.

    Each `put` is one transaction. Processes of one machine may share the file, but not on a network file system.
    A damaged entry counts as absent. A damaged file is renamed and a new one is created.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.path = cache_file(directory)
        self._connection: sqlite3.Connection | None = None
        self._process = os.getpid()
        with self._errors():
            pass  # opened

    def get(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """Return the undamaged entries found among `keys`: float32 [n] each."""
        found: dict[bytes, np.ndarray] = {}
        harmed = 0
        with self._errors() as connection:
            for begin in range(0, len(keys), _AT_ONCE):
                some = keys[begin : begin + _AT_ONCE]
                marks = ",".join("?" * len(some))
                for key, value, check in connection.execute(
                    f"SELECT key, value, checksum FROM entry WHERE key IN ({marks})", some
                ):
                    if len(value) % 4 == 0 and check == _checksum(key, value):
                        found[key] = np.frombuffer(value, dtype="<f4")
                    else:
                        harmed += 1
        if harmed:
            logger.warning("%s: %d damaged entries are computed again.", self.path, harmed)
        return found

    def put(self, entries: Mapping[bytes, np.ndarray]) -> None:
        """Store all entries or, if the process dies during the call, none. An existing entry is replaced."""
        values = {key: np.ascontiguousarray(array, dtype="<f4").tobytes() for key, array in entries.items()}
        rows = [(key, value, _checksum(key, value)) for key, value in values.items()]
        with self._errors() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO entry VALUES (?, ?, ?)", rows)

    def __len__(self) -> int:
        with self._errors() as connection:
            return int(connection.execute("SELECT count(*) FROM entry").fetchone()[0])

    def __reduce__(self) -> tuple[type["ScoreCache"], tuple[Path]]:
        return ScoreCache, (self.path.parent,)

    @contextmanager
    def _errors(self) -> Iterator[sqlite3.Connection]:
        """Yield this process's connection, and convert errors to messages that say what to do."""
        try:
            if self._connection is None or self._process != os.getpid():  # it must not be used after a fork
                self._connection, self._process = self._open(), os.getpid()
            yield self._connection
        except (OSError, sqlite3.Error) as problem:
            remedy = "Choose another directory with `score_cache`, or with the environment variable MRT_CACHE."
            if "full" in str(problem):
                remedy = "Free some space and run the same command again: what was finished is kept. Or: " + remedy
            elif "malformed" in str(problem) or "not a database" in str(problem):
                remedy = f"The file is damaged: delete {self.path} and run the same command again."
            what = f"The cache of embeddings and scores {self.path} cannot be used ({problem})."
            raise CacheError(f"{what} {remedy}") from problem

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(self.path)
        except sqlite3.DatabaseError as problem:
            if isinstance(problem, sqlite3.OperationalError):
                raise
        aside = self.path.with_name(self.path.name + ".damaged")
        logger.warning("%s is damaged: it is now %s, and a new cache is begun.", self.path, aside.name)
        os.replace(self.path, aside)
        for ending in ("-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        return _connect(self.path)


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level=None: transactions begin and end explicitly.
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    deadline = time.monotonic() + WAIT_SECONDS
    try:
        while True:  # SQLite does not wait here while another process switches a new file to a write-ahead log
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as problem:
                if "locked" not in str(problem) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA cache_size=-131072")  # 128 MiB, for the index of many millions of entries
        # Entries are stored in the order of writing, which is about the order of reading. The index is separate.
        connection.execute("CREATE TABLE IF NOT EXISTS entry (key BLOB UNIQUE, value BLOB, checksum BLOB)")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=8, key=key).digest()
