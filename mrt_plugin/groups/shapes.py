"""Convert rows to groups. A row is already a group, or it is flat and regrouped by its prompt."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, get_type_hints

from mrt_plugin.groups.adapters import guess_source, parse_source
from mrt_plugin.groups.adapters.adapter import LeftOut, Mismatch, field_names
from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.groups.messages import clean_messages, kind, without_empty_fields
from mrt_plugin.groups.problems import DataError, GroupReport, Problems, Tally
from mrt_plugin.groups.sources import Row
from mrt_plugin.groups.unused import Unused

PER_RESPONSE = {"scores": "score", "weights": "weight", "finish_reasons": "finish_reason"}
"""The columns of a group with one value for each response, and their names in a flat row."""

GROUPED = ("prompt", "responses", *PER_RESPONSE, "id")
SHAPES = (
    {name: name for name in GROUPED},
    {"prompt": "prompt", "responses": "completion", **PER_RESPONSE},
    {"prompt": "messages", "responses": "messages", **PER_RESPONSE},
)
"""The shapes of rows: for each part of a group, the name of its column."""


@dataclass
class RawGroup:
    """A group as it was read, not yet checked."""

    place: str
    prompt: Any
    responses: Any
    scores: Any = None
    weights: Any = None
    finish_reasons: Any = None
    id: Any = None
    columns: Mapping[str, str] = field(default_factory=lambda: SHAPES[0])
    """The source's names for `prompt`, `responses`, `scores`, `weights`, `finish_reasons` and `id`."""
    places: list[str] | None = None
    """The place of each response, if they are not all in one row."""

    def place_of(self, response: int) -> str:
        return self.places[response] if self.places else f"{self.place}, response {response}"


def read_raw_groups(rows: Iterable[Row], problems: Problems, report: GroupReport) -> Iterator[RawGroup]:
    """Yield groups in the order of their first row. The first row's columns decide the shape of all rows."""
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    found = first[1].keys()
    shape = next((shape for shape in SHAPES if {shape["prompt"], shape["responses"]} <= found), None)
    if shape is None:
        names = ", ".join(f"`{name}`" for name in found) or "none"
        problems.fail(
            "it needs the columns `prompt` and `responses`, or `prompt` and `completion`, or `messages`; it has "
            f"{names}. Rename the columns.{guess_source(first[1])}"
        )
    complete = _complete(chain([first], rows), shape, problems, report)
    if shape is SHAPES[0]:
        for place, row in complete:
            yield RawGroup(place, **{name: row.get(name) for name in GROUPED})  # type: ignore[arg-type]
    else:
        report.regrouped = True
        yield from _regroup(complete, shape, problems)


def _complete(rows: Iterable[Row], shape: Mapping[str, str], problems: Problems, report: GroupReport) -> Iterator[Row]:
    """Yield the rows that have the required columns."""
    unused = Unused(shape.values(), problems, report)
    for place, row in rows:
        report.rows += 1
        unused.look(place, row)
        missing = [name for name in dict.fromkeys((shape["prompt"], shape["responses"])) if name not in row]
        for name in missing:
            problems.add(place, name, f"it is missing, though the first row has it; this row has {', '.join(row)}.")
        if not missing:
            yield place, row


def _regroup(rows: Iterable[Row], shape: Mapping[str, str], problems: Problems) -> Iterator[RawGroup]:
    """Group rows of one response each by prompt. Holds all data in memory, since a prompt may recur at any time."""
    groups: dict[bytes, RawGroup] = {}
    for place, row in rows:
        try:
            if shape["prompt"] == "messages":
                prompt, response = _split_conversation(row["messages"])
            else:
                prompt, response = row["prompt"], row["completion"]
            if not isinstance(prompt, str | list):
                raise ValueError(f"it is {kind(prompt)}; it must be a string or a list of messages.")
            prompt = without_empty_fields(prompt) if isinstance(prompt, list) else prompt
            key = digest(_canonical(prompt), size=16)
        except ValueError as problem:
            problems.add(place, shape["prompt"], str(problem))
            continue
        group = groups.setdefault(key, RawGroup(place, prompt, [], [], [], [], columns=shape, places=[]))
        group.responses.append(response)
        for ours, name in PER_RESPONSE.items():
            getattr(group, ours).append(row.get(name))
        group.places.append(place)  # type: ignore[union-attr]
    for group in groups.values():
        for ours in PER_RESPONSE:
            if all(value is None for value in getattr(group, ours)):
                setattr(group, ours, None)
        yield group


def _canonical(prompt: Any) -> bytes:
    try:
        return canonical(prompt)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"it cannot be written as JSON ({problem}): use strings.") from None


def _split_conversation(messages: Any) -> tuple[list[Any], list[Any]]:
    """Split a conversation into the prompt, up to the last user message, and the response, everything after it.

    So earlier answers of the assistant are not trained on. Raises ValueError with the problem.
    """
    if not isinstance(messages, list):
        raise ValueError(f"it is {kind(messages)}; it must be a list of messages.")
    users = [at for at, item in enumerate(messages) if isinstance(item, dict) and item.get("role") == "user"]
    if not users:
        raise ValueError("no message from `user`: a conversation needs a question to answer.")
    if users[-1] == len(messages) - 1:
        raise ValueError("it ends with a user message: the assistant's answer is missing.")
    complaints: list[str] = []
    prompt = clean_messages(messages[: users[-1] + 1], "prompt", complaints.append)
    response = clean_messages(messages[users[-1] + 1 :], "response", complaints.append)
    if complaints:
        raise ValueError(" ".join(complaints))
    return prompt, response


def read_source(rows: Iterable[Row], source: str, problems: Problems, report: GroupReport) -> Iterator[RawGroup]:
    """Yield groups from the rows of a named source."""
    columns = {**SHAPES[0], **parse_source(source)[0].columns}
    for group in read_raw_groups(_converted(rows, source, problems, report), problems, report):
        group.columns = columns
        yield group


def _converted(rows: Iterable[Row], source: str, problems: Problems, report: GroupReport) -> Iterator[Row]:
    """Convert rows of the source's format. If the first row has another format, the error is raised at once."""
    adapter, options = parse_source(source)
    unused = None  # the fields that a user's function reads are unknown, unless it declares them
    if adapter.row is not None:
        unused = Unused(get_type_hints(adapter.row), problems, report)
    elif adapter.name == "fields":
        names = {part for name in map(str, options.values()) for part in (name, name.split(".")[0])}
        unused = Unused(names, problems, report, refuse=False)
    for number, (place, row) in enumerate(rows):
        try:
            checked = adapter.check_row(row)
            if unused is not None:
                unused.look(place, row)
            for item in adapter.convert(checked, **options):
                if isinstance(item, LeftOut):
                    report.left_out.setdefault(item.what, Tally()).add(place)
                elif isinstance(item, dict):
                    yield place, item
                else:
                    problems.fail(
                        f"source {adapter.name!r} gives {kind(item)} for {place}: it must yield dicts with `prompt` "
                        "and `responses` (or `completion`)."
                    )
        except Mismatch as mismatch:
            if not number:
                found = ", ".join(f"`{name}`" for name in row) or "none"
                expected = f"expects the fields {field_names(adapter.row)}" if adapter.row else "reads other fields"
                problems.fail(
                    f"source {adapter.name!r} {expected}; {place} has {found}. "
                    f"`{mismatch.name}`: {mismatch.what}{guess_source(row)}"
                )
            problems.add(place, mismatch.name, mismatch.what)
        except DataError:
            raise
        except Exception as error:
            error.add_note(f"The source {adapter.name!r} was reading {place}.")
            raise
