"""Parse a source as users write it: `NAME`, or `NAME:option=value,option=value`."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mrt_plugin.groups.adapters.adapter import Adapter


def parse_source(source: str, adapters: Mapping[str, Adapter]) -> tuple[Adapter, dict[str, Any]]:
    """Return the adapter that a source names, and its checked options.

    Raises:
        ValueError: for an unknown source (lists the known ones), an unknown option or an invalid value.
    """
    if not isinstance(source, str):
        raise ValueError(f"source={source!r} must be a string, 'nectar' or 'code_contests:language=cpp' for instance.")
    name, _, rest = source.partition(":")
    name = name.strip()
    if name not in adapters:
        close = get_close_matches(name, adapters, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"source={name!r} is unknown.{meant} Known: {', '.join(adapters)}.")
    adapter = adapters[name]
    given = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        option, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"source={source!r}: {part!r} is no option: write option=value. {_options(adapter)}")
        given[option.strip()] = value.strip()
    return adapter, _checked(adapter, given)


def options_of(convert: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return the options of a converter: its keyword arguments with their types and defaults."""
    hints = get_type_hints(convert, include_extras=True)
    return {
        name: (hints[name], parameter.default)
        for name, parameter in inspect.signature(convert).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _checked(adapter: Adapter, given: Mapping[str, str]) -> dict[str, Any]:
    known = options_of(adapter.convert)
    checked = {}
    for option, value in given.items():
        if option not in known:
            raise ValueError(f"source {adapter.name!r} has no option {option!r}. {_options(adapter)}")
        hint, _ = known[option]
        try:
            checked[option] = TypeAdapter(hint).validate_strings(value)
        except ValidationError as error:
            raise ValueError(
                f"source {adapter.name!r}: {option}={value!r} will not do: {error.errors()[0]['msg']}."
            ) from None
    needed = [name for name, (_, default) in known.items() if default is inspect.Parameter.empty and name not in given]
    if needed:
        raise ValueError(f"source {adapter.name!r} needs {', '.join(needed)}. {_options(adapter)}")
    return checked


def _options(adapter: Adapter) -> str:
    described = []
    for name, (hint, default) in options_of(adapter.convert).items():
        values = "|".join(get_args(hint)) if get_origin(hint) is Literal else "..."
        described.append(
            f"{name}={values}" + (f" (default {default})" if default not in (inspect.Parameter.empty, "") else "")
        )
    return f"Its options: {', '.join(described)}." if described else "It has none."
