"""Convert rows to groups. A row is already a group, or it is flat and regrouped by its prompt."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.groups.messages import clean_messages, kind, without_empty_fields
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.report import GroupReport
from mrt_plugin.groups.sources import Row
from mrt_plugin.groups.unused import Remedy, Unused

GROUPED = ("prompt", "responses", "scores", "weights", "finish_reasons", "id")


@dataclass
class RawGroup:
    """A group as it was read, not yet checked, with the source's names for its columns."""

    place: str
    prompt: Any
    responses: Any
    scores: Any = None
    weights: Any = None
    finish_reasons: Any = None
    id: Any = None
    columns: dict[str, str] = field(default_factory=lambda: {name: name for name in GROUPED})
    """The source's names for `prompt`, `responses`, `scores`, `weights`, `finish_reasons` and `id`."""
    places: list[str] | None = None
    """The place of each response, if they are not all in one row."""

    def place_of(self, response: int) -> str:
        """Return the place of one response."""
        return self.places[response] if self.places else f"{self.place}, response {response}"


PER_RESPONSE = {"scores": "score", "weights": "weight", "finish_reasons": "finish_reason"}
COMPLETIONS = {"prompt": "prompt", "responses": "completion", **PER_RESPONSE}
CONVERSATIONS = {"prompt": "messages", "responses": "messages", **PER_RESPONSE}

EXPECTED = "`prompt` and `responses`, or `prompt` and `completion`, or `messages`"


def read_raw_groups(
    rows: Iterable[Row],
    problems: Problems,
    report: GroupReport,
    hint: Callable[[dict[str, Any]], str] = lambda row: "",
    remedy: Remedy | None = None,
) -> Iterator[RawGroup]:
    """Yield groups in the order of their first row. The first row's columns decide the format of all rows.

    `hint` may name the format of an unknown row. `remedy` may explain how to read a column that is not read.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    found = first[1].keys()
    needed: tuple[str, ...]
    if {"prompt", "responses"} <= found:
        needed, known = ("prompt", "responses"), set(GROUPED)
    elif {"prompt", "completion"} <= found:
        needed, known = ("prompt", "completion"), set(COMPLETIONS.values())
    elif "messages" in found:
        needed, known = ("messages",), set(CONVERSATIONS.values())
    else:
        names = ", ".join(f"`{name}`" for name in found) or "none"
        problems.fail(f"it needs the columns {EXPECTED}; it has {names}. Rename the columns.{hint(first[1])}")
    counted = _complete(first, rows, needed, problems, report, Unused(known, problems, report, remedy))
    if "responses" in needed:
        for place, row in counted:
            yield RawGroup(place, **{name: row.get(name) for name in GROUPED})  # type: ignore[arg-type]
    else:
        report.regrouped = True
        yield from _regroup(counted, problems, "messages" in needed)


def _complete(
    first: Row,
    rest: Iterator[Row],
    needed: tuple[str, ...],
    problems: Problems,
    report: GroupReport,
    unused: Unused,
) -> Iterator[Row]:
    """Yield the rows that have the required columns."""
    row: Row | None = first
    while row is not None:
        report.rows += 1
        unused.look(*row)
        missing = [name for name in needed if name not in row[1]]
        for name in missing:
            problems.add(
                row[0], name, f"it is missing, though the first row has it; this row has {', '.join(row[1])}."
            )
        if not missing:
            yield row
        row = next(rest, None)


def _regroup(rows: Iterable[Row], problems: Problems, conversations: bool) -> Iterator[RawGroup]:
    """Group rows of one response each by prompt. Holds all data in memory, since a prompt may recur at any time."""
    columns = CONVERSATIONS if conversations else COMPLETIONS
    groups: dict[bytes, RawGroup] = {}
    for place, row in rows:
        if conversations:
            prompt, response = split_conversation(row["messages"], place, problems)
        else:
            prompt, response = row["prompt"], row["completion"]
        if not isinstance(prompt, str | list):
            if not conversations:
                problems.add(place, "prompt", f"it is {kind(prompt)}; it must be a string or a list of messages.")
            continue
        if isinstance(prompt, list):
            prompt = without_empty_fields(prompt)
        try:
            key = digest(canonical(prompt), size=16)
        except (TypeError, ValueError) as problem:
            problems.add(place, columns["prompt"], f"it cannot be written as JSON ({problem}): use strings.")
            continue
        if key not in groups:
            groups[key] = RawGroup(place, prompt, [], [], [], [], columns=columns, places=[])
        group = groups[key]
        group.responses.append(response)
        for ours, name in PER_RESPONSE.items():
            getattr(group, ours).append(row.get(name))
        group.places.append(place)  # type: ignore[union-attr]
    for group in groups.values():
        for ours in PER_RESPONSE:
            if all(value is None for value in getattr(group, ours)):
                setattr(group, ours, None)
        yield group


def split_conversation(messages: Any, place: str, problems: Problems) -> tuple[Any, Any]:
    """Split a conversation into the prompt, up to the last user message, and the response, everything after it.

    So earlier answers of the assistant belong to the prompt and are not trained on. Tool calls and results between
    the last question and its final answer belong to the response.
    """
    if not isinstance(messages, list):
        problems.add(place, "messages", f"it is {kind(messages)}; it must be a list of messages.")
        return None, None
    last = max(
        (index for index, item in enumerate(messages) if isinstance(item, dict) and item.get("role") == "user"),
        default=None,
    )
    if last is None:
        problems.add(place, "messages", "no message from `user`: a conversation needs a question to answer.")
        return None, None
    if last == len(messages) - 1:
        problems.add(place, "messages", "it ends with a user message: the assistant's answer is missing.")
        return None, None
    complaints: list[str] = []
    prompt = clean_messages(messages[: last + 1], "prompt", complaints.append)
    response = clean_messages(messages[last + 1 :], "response", complaints.append)
    for complaint in complaints:
        problems.add(place, "messages", complaint)
    return (None, None) if complaints else (prompt, response)
