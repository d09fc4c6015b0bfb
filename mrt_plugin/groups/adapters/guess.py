"""Say which source, or which `fields:`, reads a row of an unknown format."""

import re
from collections.abc import Iterator
from typing import Any

from mrt_plugin.groups.adapters import all_sources

PROMPTS = ("prompt", "instruction", "question", "problem", "query")
"""Common names of columns that hold the prompt."""

POOLS = frozenset(
    "responses generations completions candidates outputs rollouts predictions answers solutions".split()
)
"""Common names of columns that hold several responses."""

SINGLE = ("completion", "response", "generated_solution", "generation", "output", "answer", "solution")
"""Common names of columns that hold one response."""

_NUMBER = re.compile(r"(.*?)(\d+)(\D*)")


def guess_source(row: dict[str, Any]) -> str:
    """Return a sentence that names the sources whose fields the row has, or `fields:`, or an empty string."""
    fitting = [adapter for adapter in all_sources() if adapter.fits(row)]
    most = max((len(adapter.row.__required_keys__) for adapter in fitting), default=0)
    # An HH-RLHF row is also a TRL preference row. If several sources match equally well, name all of them.
    names = [repr(adapter.name) for adapter in fitting if len(adapter.row.__required_keys__) == most]
    if names:
        return f" It has the fields of source {' or '.join(names)}."
    fields = guess_fields(row)
    return f" Read it with source={fields!r}." if fields else ""


def guess_prompt(row: dict[str, Any]) -> str | None:
    """Return the column that holds the prompt by its name, or None."""
    return next((name for name in PROMPTS if isinstance(row.get(name), str)), None)


def guess_fields(row: dict[str, Any]) -> str | None:
    """Return a source `fields:...` that could read the row, guessed from the names of its columns, or None."""
    prompt = guess_prompt(row)
    if prompt is None:
        return None
    if numbered := list(_numbered(row, str)):
        scores = [name for name in _numbered(row, bool | int | float) if name.startswith(numbered[0])]
        return f"fields:prompt={prompt},responses={numbered[0]}" + "".join(f",scores={name}" for name in scores[:1])
    pool = next((name for name in row if name.casefold() in POOLS and is_pool(row[name])), None)
    if pool is not None:
        return f"fields:prompt={prompt},responses={pool}"
    single = next((name for name in SINGLE if isinstance(row.get(name), str)), None)
    return f"fields:prompt={prompt},completion={single}" if single else None


def is_pool(value: Any) -> bool:
    """Return whether a value has several texts or messages. Numbers only describe texts."""
    return isinstance(value, list) and sum(isinstance(item, str | list | dict) for item in value) > 1


def _numbered(row: dict[str, Any], kind: Any) -> Iterator[str]:
    """Yield names with `*` for a number that match several columns of that type."""
    names = [(name, _NUMBER.fullmatch(name)) for name, value in row.items() if isinstance(value, kind)]
    patterns = [f"{matched[1]}*{matched[3]}" for _, matched in names if matched]
    yield from (pattern for pattern in dict.fromkeys(patterns) if patterns.count(pattern) > 1)
