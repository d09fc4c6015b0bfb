"""Check files, folders and models named in options. Missing ones are refused before anything is read."""

import logging
import os
from difflib import get_close_matches
from pathlib import Path

logger = logging.getLogger(__name__)

DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".csv", ".tsv", ".arrow")
"""A name with one of these endings is a file name, never a hub id."""

_IN_FOLDERS = (*DATA_ENDINGS, ".gz", ".zst", ".zip", ".bz2", ".xz")
"""Endings of what `datasets` reads in a folder."""


def check_file(name: str | Path) -> None:
    """Raise ValueError unless the file exists. The message suggests a similar name."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise ValueError(f"{name} is a folder: give a file.")
    if not path.is_file():
        raise ValueError(f"there is no such file: {name}{meant(path)}")


def check_folder(name: str | Path) -> None:
    """Raise ValueError unless the folder exists. The message suggests a similar name."""
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ValueError(f"there is no folder {name}{meant(path)}")


def check_data(name: str | Path) -> None:
    """Raise ValueError if a name is a path, not a hub id, and the path does not exist."""
    path = Path(name).expanduser()
    if not path.exists() and (path.suffix.lower() in DATA_ENDINGS or _is_path(name)):
        raise ValueError(f"there is no such file: {name}{meant(path)}")
    if path.is_dir() and all(file.suffix.lower() not in _IN_FOLDERS for file in path.rglob("*")):
        raise ValueError(f"{name} is a folder without data: give a file.")


def check_model(name: str | Path, holds: str | None = "config.json") -> None:
    """Raise ValueError if a name is a path, not a hub id, and there is no folder with the file `holds`."""
    path = Path(name).expanduser()
    if not path.exists():
        if _is_path(name):
            raise ValueError(f"there is no folder {name}{meant(path)}")
        if meant(path) != ".":
            logger.warning("%s is looked up on the hub, since there is no such folder here%s", name, meant(path))
    if path.is_file():
        raise ValueError(f"{name} is a file: give the folder that the model was saved to.")
    if path.is_dir() and holds is not None and not (path / holds).is_file():
        raise ValueError(f"the folder {name} has no {holds}: give the folder that the model was saved to.")


def _is_path(name: str | Path) -> bool:
    """Return whether a name can only be a path. Hub ids are `name`, or `org/name` where no folder `org` exists."""
    text = os.fspath(name)
    if "://" in text:
        return False
    if isinstance(name, Path) or text.startswith((".", "~", "/")) or text.endswith("/"):
        return True
    first, *rest = Path(text).parts
    return len(rest) > 1 or (len(rest) == 1 and Path(first).is_dir())


def meant(path: Path) -> str:
    """Return the end of a message: `; did you mean PATH?` if a similar path exists, else a full stop.

    Each missing part of the path is replaced by a similar name in its folder.
    """
    found = Path(path.parts[0]) if path.is_absolute() else Path()
    for part in path.parts[1:] if path.is_absolute() else path.parts:
        following = found / part
        if not following.exists():
            try:
                beside = {Path(name).stem: name for name in sorted(os.listdir(found))}
            except OSError:  # a file, or a folder without read permission
                return "."
            near = get_close_matches(Path(part).stem, beside, n=1)
            if not near:
                return "."
            following = found / beside[near[0]]
        found = following
    return f"; did you mean {found}?" if found != path else "."
