"""Compare the files that a command writes and reads, before it reads any, so that none is overwritten."""

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from mrt_plugin.groups.write import partial_path

MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model")
"""Endings of the files in a model's folder that affect what the model does."""

Named = tuple[str, str | Path | None]
"""The name of a path in messages, and the path, or None where the option is not set."""


def check_paths(
    written: Iterable[Named], read: Iterable[Named] = (), models: Iterable[str | Path | None] = ()
) -> None:
    """Raise ValueError unless the files that a command writes differ from each other and from all that it reads.

    A folder that is read includes everything in it, a model's folder only its own files. Hub ids are ignored.
    """
    taken = [(f"{what} {path}", path) for what, text in read if text is not None and (path := _existing(text))]
    folders = [Path(folder).resolve() for folder in models if folder is not None and Path(folder).is_dir()]
    for what, text in written:
        if text is None:
            continue
        path = Path(text)
        place = f"{what} {path}"
        above = next(folder for folder in path.absolute().parents if folder.exists())
        problems = [
            (path.exists() and not path.is_file(), f"{place} is no ordinary file, and cannot be replaced by one")
        ]
        problems += [(not above.is_dir(), f"{place}: {above} is a file, not a folder")]
        for name, other in taken:
            problems += [(same_file(path, other), f"{place} is the same file as {name}")]
            problems += [(_real(other) in _real(path).parents, f"{place} lies in {name}")]
            problems += [(_real(path) in _real(other).parents, f"{name} lies in {place}")]
        for folder in folders:
            ours = _real(path).suffix in MODEL_FILES and folder in _real(path).parents
            problems += [(ours, f"{place} would be one of the files of the model {folder}")]
        if found := next((what for wrong, what in problems if wrong), None):
            raise ValueError(f"{found}: write to another place.")
        # A written file gets its final name only at the end. Its temporary name is reserved too.
        taken += [(f"{what} {name}", name) for name in (path, partial_path(path))]


def same_file(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths lead to the same file, whether or not it exists."""
    one, other = Path(one), Path(other)
    return (one.exists() and other.exists() and one.samefile(other)) or _real(one) == _real(other)


def _real(path: Path) -> Path:
    """Return a path in one form: absolute, without links, and in lower case where case is ignored."""
    resolved = path.resolve()
    return Path(str(resolved).casefold()) if _folds_case(resolved.parent) else resolved


def _existing(text: str | Path) -> Path | None:
    """Return the existing path that an option names, also as `file.py:function`, or None for any other name."""
    for spelled in (str(text), str(text).rpartition(":")[0]):
        path = os.path.expanduser(spelled)
        if os.path.exists(path):  # a rule as text may be an invalid file name, for which Path.exists() raises
            return Path(path)
    return None


@cache
def _folds_case(folder: Path) -> bool:
    """Return whether the file system ignores case there, tested on the name of the nearest existing folder."""
    for place in (folder, *folder.parents):
        other = place.with_name(place.name.swapcase()) if place.name else place
        if other != place and place.exists():
            return other.exists() and other.samefile(place)
    return False
