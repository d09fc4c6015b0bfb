"""Compare the files that a command writes and reads, before it reads any, so that none is overwritten."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
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

    Paths are compared as the file system resolves them, links and case included. A folder that is read includes
    everything in it, and a model's folder only the model's own files. A name that is no path, such as a hub id or a
    module, is ignored. For `file.py:function` the file is compared.
    """
    taken = [_Place(what, path) for what, text in read if text is not None and (path := _existing(text)) is not None]
    folders = [Path(folder).resolve() for folder in models if folder is not None and Path(folder).is_dir()]
    for what, text in written:
        if text is None:
            continue
        place = _Place(what, Path(text))
        if place.path.exists() and not place.path.is_file():
            raise ValueError(f"{place} is no ordinary file, and cannot be replaced by one: write to another place.")
        above = next(folder for folder in place.path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise ValueError(f"{place}: {above} is a file, not a folder: write to another place.")
        for other in taken:
            place.check_apart(other)
        for folder in folders:
            if place.real.suffix in MODEL_FILES and folder in place.real.parents:
                raise ValueError(f"{place} would be one of the files of the model {folder}: write to another place.")
        # A written file gets its final name only at the end. Its temporary name is reserved too.
        taken += [place, _Place(what, partial_path(place.path))]


def same_file(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths lead to the same file, whether or not it exists."""
    return _Place("", Path(one)).is_at(_Place("", Path(other)))


@dataclass(frozen=True)
class _Place:
    what: str
    path: Path

    def __str__(self) -> str:
        return f"{self.what} {self.path}"

    @cached_property
    def real(self) -> Path:
        """The path in one form: absolute, without links, and in lower case where case is ignored."""
        resolved = self.path.resolve()
        return Path(str(resolved).casefold()) if _folds_case(resolved.parent) else resolved

    def is_at(self, other: "_Place") -> bool:
        both = self.path.exists() and other.path.exists()
        return (both and self.path.samefile(other.path)) or self.real == other.real

    def check_apart(self, other: "_Place") -> None:
        """Raise ValueError if both are the same file, or one lies inside the other."""
        if self.is_at(other):
            raise ValueError(f"{self} is the same file as {other}: write to another place.")
        for inner, outer in ((self, other), (other, self)):
            if outer.real in inner.real.parents:
                raise ValueError(f"{inner} lies in {outer}: write to another place.")


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
