"""Load a user's function by the name given in an option."""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any


@cache
def load_function(name: str) -> Callable[..., Any]:
    """Return the function named by `package.module:function` or `path/to/file.py:function`.

    Raises:
        ValueError: if there is no such function.

    Example:

    >>> load_function("math:sqrt")(9)
    3.0
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place:
        raise ValueError(f"{name!r} names no function: write package.module:function or path/to/file.py:function.")
    if place.endswith(".py"):
        path = Path(place)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise ValueError(f"{name!r}: there is no file {path}.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as problem:
            raise ValueError(f"{name!r}: {problem}.") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"{name!r}: {place} has no function {attribute}.")
    return function  # type: ignore[no-any-return]
