"""Write files that appear complete or not at all, and groups that `load_groups` reads back unchanged."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet
from datasets import Dataset, Features

from mrt_plugin.groups.batches import batch_size, chunked
from mrt_plugin.groups.messages import is_sound

try:
    import fcntl
except ImportError:  # Windows: two processes that write the same file do not notice each other
    fcntl = None  # type: ignore[assignment]

CHUNK = 1000
"""The most groups written at a time, and in a row group of Parquet. Fixed, since it affects the file's bytes."""


@dataclass(frozen=True)
class Written:
    """A file that was written."""

    path: Path
    groups: int
    responses: int
    bytes: int
    sha256: str


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open `.NAME.partial`, which gets its name only if the block succeeds. Errors name the path."""
    path = Path(path)
    partial = partial_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("ab") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    except BlockingIOError:
        raise OSError(f"{path}: another process is writing it; wait for it, or write elsewhere.") from None
    except OSError as problem:
        if problem.filename is not None:
            raise
        raise OSError(problem.errno, problem.strerror, str(path)) from problem


@contextmanager
def scratch_file(folder: Path) -> Iterator[BinaryIO]:
    """Open a new file that is removed after the block unless it was renamed, or by the next call after a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    # A process locks its file while it writes. A file without a lock was left by a killed process.
    names = os.listdir(folder) if fcntl is not None else []  # a cache has thousands of files, and `glob` is slow
    for left in (folder / name for name in names if name.startswith("tmp") and name.endswith(".partial")):
        with suppress(OSError), left.open("rb") as file:  # another process is writing it, or has removed it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    while True:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="tmp", suffix=".partial", delete=False) as file:
            if fcntl is not None:
                with suppress(OSError):  # without locks on this file system, no process removes the file
                    fcntl.flock(file, fcntl.LOCK_EX)
            if not os.fstat(file.fileno()).st_nlink:
                continue  # another process removed it before it was locked
            try:
                yield file  # type: ignore[misc]
                return
            finally:
                Path(file.name).unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """Return the name of a file until it is complete."""
    return path.with_name(f".{path.name}.partial")


def write_text(path: str | Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())


def write_groups(groups: Dataset, path: str | Path) -> Written:
    """Write groups as JSON lines or Parquet, by the ending. The bytes depend on the groups (and on pyarrow) alone."""
    return write_rows(rows_of(groups), groups.features, path)


def rows_of(groups: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the groups one by one, read a batch at a time."""
    for batch in groups.iter(batch_size(groups, 256)):
        for values in zip(*batch.values(), strict=True):  # type: ignore[union-attr]
            yield dict(zip(batch, values, strict=True))


def write_rows(
    rows: Iterable[dict[str, Any]], features: Features, path: str | Path, *, sha256: str | None = None
) -> Written:
    """Write rows as `write_groups` does. Without the expected `sha256`, write nothing and raise ValueError."""
    path = Path(path)
    check_ending(path)
    schema, table = features.arrow_schema, path.suffix == ".parquet"
    sizes: list[int] = []
    with whole_file(path) as file:
        writing: Any = pyarrow.parquet.ParquetWriter(file, schema) if table else nullcontext()
        with writing as writer:
            for chunk in chunked(rows, CHUNK):
                sizes += [len(row["responses"]) for row in chunk]
                if table:
                    writer.write_table(arrow_table(chunk, features))
                    continue
                for row in chunk:
                    file.write(_line({name: row[name] for name in features}))
        file.flush()
        size, found = file.tell(), sha256_of(file.name)
        if sha256 not in (None, found):
            raise ValueError(f"{path} would not be the file that was asked for: its SHA-256 is {found}, not {sha256}.")
    return Written(path, len(sizes), sum(sizes), size, found)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def content_sha256(groups: Dataset) -> str:
    """Return the SHA-256 of the JSON lines that `write_groups` would write."""
    state = hashlib.sha256()
    for row in rows_of(groups):
        state.update(_line(row))
    return state.hexdigest()


def check_name(path: str | Path) -> None:
    """Raise ValueError unless the file's name can be written in manifests, reports and messages."""
    if not is_sound(str(path)):
        raise ValueError(f"{os.fsencode(path)!r}: the name is not UTF-8, so that no manifest can hold it: rename it.")


def check_ending(path: Path) -> None:
    """Raise ValueError unless groups can be written to a file with this ending."""
    check_name(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: write groups to a .jsonl or a .parquet file.")


def arrow_table(rows: Sequence[dict[str, Any]], features: Features) -> pyarrow.Table:
    """Encode rows as an Arrow table with the columns of `features`."""
    columns = {name: [spelled(row[name]) for row in rows] for name in features}
    return Dataset.from_dict(columns, features=features).data.table


def spelled(value: Any) -> Any:
    """Convert messages to JSON text here, since the encoder of `datasets` rounds numbers to nine digits."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return [spelled(item) for item in value] if isinstance(value, list) else value


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
