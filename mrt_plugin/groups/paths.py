"""Which files a command writes and which it reads: compared before anything is read, so that none is lost."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from mrt_plugin.groups.write import partial_path

MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model")
"""Endings of the files of a model's folder that decide what the model does."""

Named = tuple[str, str | Path | None]
"""What a path is called in messages, and the path; None where the option is not set."""


def check_paths(
    written: Iterable[Named], read: Iterable[Named] = (), models: Iterable[str | Path | None] = ()
) -> None:
    """Raise unless the files that a command writes differ from each other and from everything that it reads.

    Paths are compared as the file system sees them: relative or absolute, through symbolic and hard links, and without
    case where names have none. A folder that is read stands for everything in it.

    Args:
        written: every file that the command writes, with manifests and journals.
        read: files and folders of data; a name that is no path here, of a hub or a module, is passed over. Of
            `file.py:function` the file is compared.
        models: folders of models. A report may lie in one, but may not be one of the model's own files.

    Raises:
        ValueError: naming both paths.

    Example:

    >>> check_paths([("--output", "pool.jsonl"), ("--report", "pool.jsonl")])
    Traceback (most recent call last):
        ...
    ValueError: --report pool.jsonl is the same file as --output pool.jsonl: write to another place.
    """
    taken = [_Place(what, path) for what, text in read if text is not None and (path := _existing(text)) is not None]
    folders = [Path(folder).resolve() for folder in models if folder is not None and Path(folder).is_dir()]
    for what, text in written:
        if text is None:
            continue
        place = _Place(what, Path(text))
        place.check_writable()
        for other in taken:
            place.check_apart(other)
        for folder in folders:
            if place.real.suffix in MODEL_FILES and folder in place.real.parents:
                raise ValueError(f"{place} would be one of the files of the model {folder}: write to another place.")
        # What is written takes its name only at the end: the name that it has until then is taken too.
        taken += [place, _Place(what, partial_path(place.path))]


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to the same file, there or not."""
    return _Place("", Path(one)).is_at(_Place("", Path(other)))


@dataclass(frozen=True)
class _Place:
    what: str
    path: Path

    def __str__(self) -> str:
        return f"{self.what} {self.path}"

    @cached_property
    def real(self) -> Path:
        """The path in one spelling: absolute, without links, and in lower case where the case makes no difference."""
        resolved = self.path.resolve()
        return Path(str(resolved).casefold()) if _folds_case(resolved.parent) else resolved

    def is_at(self, other: "_Place") -> bool:
        """Whether both are one file."""
        if self.path.exists() and other.path.exists() and self.path.samefile(other.path):
            return True
        return self.real == other.real

    def check_apart(self, other: "_Place") -> None:
        """Raise ValueError if this is the other, or one lies in the other."""
        if self.is_at(other):
            raise ValueError(f"{self} is the same file as {other}: write to another place.")
        if other.real in self.real.parents or self.real in other.real.parents:
            inner, outer = (self, other) if other.real in self.real.parents else (other, self)
            raise ValueError(f"{inner} lies in {outer}: write to another place.")

    def check_writable(self) -> None:
        """Raise ValueError if no file can be put here."""
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"{self} is no ordinary file, and cannot be replaced by one: write to another place.")
        above = next(folder for folder in self.path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise ValueError(f"{self}: {above} is a file, not a folder: write to another place.")


def _existing(text: str | Path) -> Path | None:
    """The path that an option names, also as `file.py:function`; None for a name of something else."""
    for spelled in (str(text), str(text).rpartition(":")[0]):
        path = os.path.expanduser(spelled)
        if os.path.exists(path):  # a rule as text is no possible file name, which Path.exists() would raise for
            return Path(path)
    return None


@cache
def _folds_case(folder: Path) -> bool:
    """Whether names that differ in case alone are one file there, judged by the name of the nearest folder."""
    for place in (folder, *folder.parents):
        other = place.with_name(place.name.swapcase()) if place.name else place
        if other != place and place.exists():
            return other.exists() and other.samefile(place)
    return False
