"""Read the prompts to draw responses for, from a file of prompts or the groups of a pool."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrt_plugin.groups import GroupReport, load_groups, prompt_key
from mrt_plugin.groups.check import id_problem
from mrt_plugin.groups.messages import SURROGATE, clean_messages, has_text, is_sound, kind
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.shapes import GROUPED
from mrt_plugin.groups.sources import Row, open_source
from mrt_plugin.groups.unused import PAIR, POOLS, Unused

logger = logging.getLogger(__name__)


def read_prompts(data: Any, *, split: str = "train", source: str | None = None) -> tuple[list[tuple[str, Any]], int]:
    """Return the distinct prompts in order, each with its id, and the number of rows that repeat an earlier prompt.

    `data` is a text file with one prompt per line, or anything `load_groups` reads: rows with `prompt` (a string or
    messages) or `messages` (up to the last user message), and optionally `id`. Responses are ignored.
    """
    if source is not None:
        groups = load_groups(data, split=split, source=source)
        return [(group["id"], group["prompt"]) for group in groups], 0  # type: ignore[index]
    found: dict[str, Any] = {}
    repeated = 0
    first: tuple[str, str] | None = None
    problems = Problems(str(data) if isinstance(data, str | Path) else "the dataset")
    report = GroupReport(problems.source)
    unused = Unused({*GROUPED, "messages", *POOLS, *PAIR}, problems, report)
    for place, row in _rows(data, split, problems):
        unused.look(place, row)
        column, prompt = _prompt(place, row, problems)
        if prompt is None:
            continue
        form = "a string" if isinstance(prompt, str) else "a list of messages"
        first = first or (form, place)
        if form != first[0]:
            text = f"it is {form}, but {first[1]} has {first[0]}: use one form for all prompts."
            problems.add(place, column, text)
        given = row.get("id")
        problem = None if given is None else id_problem(given)
        name = prompt_key(prompt) if given is None else str(given)
        if problem:
            problems.add(place, "id", problem)
        elif name not in found:
            found[name] = prompt
        elif given is None:
            repeated += 1
        else:
            problems.add(place, "id", f"{name!r} is the id of an earlier row too: ids must differ. Or remove them.")
    problems.raise_any()
    for line in report.notes():
        logger.warning(line)
    if not found:
        problems.fail("it is empty: write at least one prompt.")
    return list(found.items()), repeated


def _rows(data: Any, split: str, problems: Problems) -> Iterator[Row]:
    if not isinstance(data, str | Path) or Path(data).suffix != ".txt":
        return open_source(data, split).rows(problems)
    try:
        lines = Path(data).read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also split at U+2028
    except UnicodeDecodeError as problem:
        problems.fail(f"not UTF-8 text ({problem}): convert the file.", problem)
    return ((f"line {number}", {"prompt": line}) for number, line in enumerate(lines, start=1) if has_text(line))


def _prompt(place: str, row: dict[str, Any], problems: Problems) -> tuple[str, Any]:
    """Return the column of a row's prompt and the checked prompt, or None for it after a problem."""
    column = "messages" if "messages" in row and "prompt" not in row else "prompt"
    value = row.get(column)
    if column == "messages" and isinstance(value, list):
        users = [index for index, item in enumerate(value) if isinstance(item, dict) and item.get("role") == "user"]
        value = value[: users[-1] + 1] if users else value
    complaints: list[str] = []
    if isinstance(value, str) and has_text(value):
        complaints += [] if is_sound(value) else [SURROGATE]
    elif isinstance(value, list) and value:
        value = clean_messages(value, "prompt", complaints.append)
    elif column not in row:
        has = ", ".join(f"`{name}`" for name in row) or "nothing"
        complaints.append(f"it is missing; the row has {has}. Name the column `prompt`.")
    else:
        what = "empty" if isinstance(value, str | list) else kind(value)
        complaints.append(f"it is {what}; it must be a string or a list of messages.")
    for complaint in complaints:
        problems.add(place, column, complaint)
    return column, None if complaints else value
