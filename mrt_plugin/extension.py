"""Load a user's code by the name given in an option: `package.module:name` or `path/to/file.py:name`."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any


def is_extension(name: str) -> bool:
    """Return whether a name is a user's own (`package.module:name`, `file.py:name`), not one of the package's."""
    place, _, attribute = name.rpartition(":")
    return bool(place) and attribute.isidentifier()


@cache
def load_extension(name: str) -> Any:
    """Return the object named by `package.module:name` or `path/to/file.py:name`, or raise ValueError."""
    place, _, attribute = name.rpartition(":")
    if not place:
        raise ValueError(f"{name!r} names no function: write package.module:function or path/to/file.py:function.")
    if place.endswith(".py"):
        path = Path(place)
        spec = importlib.util.spec_from_file_location(f"mrt_extension_{path.stem}", path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise ValueError(f"{name!r}: there is no file {path}.")
        module = importlib.util.module_from_spec(spec)
        with _importable(module):
            spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as problem:
            raise ValueError(f"{name!r}: {problem}.") from None
    if attribute not in vars(module):
        raise ValueError(f"{name!r}: {place} has no function {attribute}.")
    return vars(module)[attribute]


@contextmanager
def _importable(module: ModuleType) -> Iterator[None]:
    """Register a module while its code runs: dataclasses and pydantic look up postponed annotations there.

    Afterwards it must not stay. Pickle, dill and Ray would refer to it by name, which other processes cannot import.
    """
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]


def load_function(name: str) -> Callable[..., Any]:
    """Return the function of that name, or raise ValueError."""
    function = load_extension(name)
    if not callable(function):
        raise ValueError(f"{name!r}: this is no function.")
    return function  # type: ignore[no-any-return]


def extension_files(name: str) -> list[Path]:
    """Return the files of a user's object: the file or module of its name, and where it is defined."""
    place = name.rpartition(":")[0]
    home = inspect.getmodule(inspect.unwrap(load_extension(name)))
    modules = [module for module in (sys.modules.get(place), home) if module is not None]
    files = {Path(place), *(Path(str(module.__spec__.origin)) for module in modules if module.__spec__ is not None)}
    return sorted(file for file in files if file.is_file())
