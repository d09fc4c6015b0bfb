"""Make checked groups of rows. A row is already a group, or it is flat and regrouped by its prompt."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from mrt_plugin.groups.adapters import parse_source
from mrt_plugin.groups.adapters.guess import guess_source
from mrt_plugin.groups.convert import converted_rows
from mrt_plugin.groups.delimited import TRUTH, Cell
from mrt_plugin.groups.keys import canonical, digest, prompt_key
from mrt_plugin.groups.messages import (
    SURROGATE,
    Part,
    clean_messages,
    has_text,
    is_sound,
    kind,
    response_text,
    without_empty_fields,
)
from mrt_plugin.groups.problems import GroupReport, Problems
from mrt_plugin.groups.regroup import Collector
from mrt_plugin.groups.sources import Row
from mrt_plugin.groups.unused import Unused

PER_RESPONSE = {"scores": "score", "weights": "weight", "finish_reasons": "finish_reason"}
"""The columns of a group with one value for each response, and their names in a flat row."""

GROUPED = ("prompt", "responses", *PER_RESPONSE, "id", "category")
SHAPES = (
    {name: name for name in GROUPED},
    {"prompt": "prompt", "responses": "completion", **PER_RESPONSE, "category": "category"},
    {"prompt": "messages", "responses": "messages", **PER_RESPONSE, "category": "category"},
)
"""The shapes of rows: for each part of a group, the name of its column."""


@dataclass
class RawGroup:
    """A group as it was read, not yet checked. `columns` has the source's names of its parts."""

    place: str
    row: dict[str, Any]
    columns: Mapping[str, str]
    places: list[str] = field(default_factory=list)
    """The place of each response, if they are not all in one row."""

    def place_of(self, response: int) -> str:
        return self.places[response] if self.places else f"{self.place}, response {response}"


def read_raw_groups(
    rows: Iterable[Row], source: str | None, problems: Problems, report: GroupReport
) -> Iterator[RawGroup]:
    """Yield groups in the order of their first row. The first row's columns decide the shape of all rows."""
    rows = converted_rows(rows, source, problems, report) if source else iter(rows)
    first = next(rows, None)
    if first is None:
        return
    found = first[1].keys()
    shape = next((shape for shape in SHAPES if {shape["prompt"], shape["responses"]} <= found), None)
    if shape is None:
        wanted = "the columns `prompt` and `responses`, or `prompt` and `completion`, or `messages`"
        names = ", ".join(f"`{name}`" for name in found) or "none"
        problems.fail(f"it needs {wanted}; it has {names}.{guess_source(first[1]) or ' Rename the columns.'}")
    unused = Unused(shape.values(), problems, report)
    report.regrouped = shape is not SHAPES[0]
    columns = {**SHAPES[0], **parse_source(source)[0].columns} if source else shape
    with Collector() as collected:  # the prompt of a flat row may recur at any time
        for place, row in chain([first], rows):
            report.rows += 1
            unused.look(place, row)
            missing = [name for name in dict.fromkeys((shape["prompt"], shape["responses"])) if name not in row]
            for name in missing:
                problems.add(
                    place, name, f"it is missing, though the first row has it; this row has {', '.join(row)}."
                )
            if not missing and not report.regrouped:
                yield RawGroup(place, row, columns)
            elif not missing:
                try:
                    prompt, response, key = _split_flat(row, shape)
                except ValueError as problem:
                    problems.add(place, shape["prompt"], str(problem))
                else:
                    values = tuple(map(row.get, PER_RESPONSE.values()))
                    start = None if key in collected else (prompt, row.get("category", _ABSENT))
                    collected.add(key, (place, start, response, *values))
        for items in collected:
            places, starts, *lists = map(list, zip(*items, strict=True))
            prompt, category = starts[0]
            labelled = {} if category == _ABSENT else {"category": category}
            columns_read = zip(("responses", *PER_RESPONSE), lists, strict=True)
            given = {name: values for name, values in columns_read if name == "responses" or _any_given(values)}
            yield RawGroup(places[0], {"prompt": prompt, **given, **labelled}, columns, places)


_ABSENT = "\0absent"
"""In place of the category of rows without that column; None is an empty one."""


def _any_given(values: list[Any]) -> bool:
    return any(value is not None for value in values)


def _split_flat(row: dict[str, Any], shape: Mapping[str, str]) -> tuple[Any, Any, bytes]:
    """Return the prompt of a flat row, its response, and the prompt's key, or raise ValueError with the problem."""
    if shape["prompt"] == "messages":
        prompt, response = _split_conversation(row["messages"])
    else:
        prompt, response = row["prompt"], row["completion"]
    if not isinstance(prompt, str | list):
        raise ValueError(f"it is {kind(prompt)}; it must be a string or a list of messages.")
    prompt = without_empty_fields(prompt) if isinstance(prompt, list) else prompt
    try:
        return prompt, response, digest(canonical(prompt), size=16)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"it cannot be written as JSON ({problem}): use strings.") from None


def _split_conversation(messages: Any) -> tuple[list[Any], list[Any]]:
    """Split a conversation after its last user message, so that earlier answers are not trained on."""
    if not isinstance(messages, list):
        raise ValueError(f"it is {kind(messages)}; it must be a list of messages.")
    turns = enumerate(messages, start=1)
    end = max((at for at, item in turns if isinstance(item, dict) and item.get("role") == "user"), default=0)
    if not end:
        raise ValueError("no message from `user`: a conversation needs a question to answer.")
    if end == len(messages):
        raise ValueError("it ends with a user message: the assistant's answer is missing.")
    complaints: list[str] = []
    prompt = clean_messages(messages[:end], "prompt", complaints.append)
    response = clean_messages(messages[end:], "response", complaints.append)
    if complaints:
        raise ValueError(" ".join(complaints))
    return prompt, response


class GroupChecker:
    """Check groups one by one, and remember what must be consistent between them."""

    def __init__(self, problems: Problems, report: GroupReport) -> None:
        self.problems, self.report = problems, report
        self.forms: dict[str, tuple[str, str]] = {}
        self.prompts: set[str] = set()
        self.categorised: bool | None = None
        self.ids: dict[str, int] = {}

    def check(self, raw: RawGroup) -> dict[str, Any] | None:
        """Return the row of a group, or None if it is dropped (counted) or has a problem (recorded)."""
        before = len(self.problems.found)
        prompt = self._text_or_messages(raw.row.get("prompt"), "prompt", raw.place, raw.columns["prompt"])
        if prompt is not None and not (has_text(prompt) if isinstance(prompt, str) else prompt):
            self.problems.add(raw.place, raw.columns["prompt"], "it is empty: write the prompt, or remove the row.")
        responses = self._responses(raw)
        columns = {name: self._per_response(raw, name) for name in PER_RESPONSE}
        if prompt is None or len(self.problems.found) > before:
            return None
        kept = [index for index, response in enumerate(responses) if response is not None]
        if not kept:
            self.report.groups_without_responses.add(raw.place)
            return None
        row = {name: [column[index] for index in kept] for name, column in columns.items() if column is not None}
        if "weights" in row and not sum(row["weights"]) > 0:
            what = "all weights are 0: give at least one response a positive weight."
            self.problems.add(raw.place, raw.columns["weights"], what)
        responses = [response for response in responses if response is not None]
        spelled = sorted(map(canonical, responses))
        for _ in range(len(spelled) - len(set(spelled))):
            self.report.duplicate_responses.add(raw.place)
        key = prompt_key(prompt)
        if key in self.prompts:
            self.report.duplicate_prompts.add(raw.place)
        self.prompts.add(key)
        self.report.groups, self.report.responses = self.report.groups + 1, self.report.responses + len(responses)
        self.report.smallest = min(self.report.smallest or len(responses), len(responses))
        self.report.largest = max(self.report.largest, len(responses))
        group = {"id": self._id(raw, prompt, spelled), **self._category(raw), "prompt": prompt}
        return {**group, "responses": responses, **row}

    def _responses(self, raw: RawGroup) -> list[Any]:
        """Return the responses, with None for each empty one."""
        column, given = raw.columns["responses"], raw.row.get("responses")
        if not isinstance(given, list | None):
            what = f"it is {kind(given)}; it must be a list of responses, each a string or a list of messages."
            self.problems.add(raw.place, column, what)
            return []
        responses = []
        for index, response in enumerate(given or []):
            found = len(self.problems.found)
            if response is not None:
                response = self._text_or_messages(response, "response", raw.place_of(index), column)
            if len(self.problems.found) > found:
                continue
            if response is None or not has_text(response_text(response)):
                self.report.empty_responses.add(raw.place_of(index))
                response = None
            responses.append(response)
        return responses

    def _text_or_messages(self, value: Any, part: Part, place: str, column: str) -> Any:
        """Return the string or the cleaned messages, or None after a problem."""
        complaints = []
        form = "a string" if isinstance(value, str) else "a list of messages"
        if value is None:
            complaints.append(f"it is missing: write the {part}, or remove the row.")
        elif isinstance(value, list):
            value = clean_messages(value, part, complaints.append)
        elif not isinstance(value, str):
            complaints.append(f"it is {kind(value)}; it must be a string or a list of messages.")
        elif not is_sound(value):
            complaints.append(SURROGATE)
        if not complaints:
            first, where = self.forms.setdefault(part, (form, place))
            if form == first:
                return str(value) if isinstance(value, Cell) else value
            complaints.append(f"it is {form}, but {where} has {first}: use one form for all {part}s.")
        self.problems.add(place, column, complaints[0])
        return None

    def _per_response(self, raw: RawGroup, name: str) -> list[Any] | None:
        """Return the scores, weights or finish reasons. None if there are none, or after a problem."""
        values, column, place = raw.row.get(name), raw.columns[name], raw.place
        responses = raw.row.get("responses")
        if responses:
            state = "absent" if values is None else "given"
            first, where = self.forms.setdefault(name, (state, place))
            if state != first:
                differ = f"they are {state} here, but {first} in {where}: give {name} for all groups or for none."
                self.problems.add(place, column, differ)
        if values is None:
            return None
        what: str | None = None
        if not isinstance(values, list):
            form = "strings" if name == "finish_reasons" else "numbers"
            what = f"it is {kind(values)}; it must be a list of {form}, one per response."
        elif isinstance(responses, list) and len(values) != len(responses):
            one = PER_RESPONSE[name].replace("_", " ")
            what = f"it has {len(values)} for {len(responses)} responses: give one {one} for each response."
        else:
            found = ((index, _value_problem(name, value)) for index, value in enumerate(values))
            index, what = next((item for item in found if item[1]), (0, None))
            if what is None:
                return values if name == "finish_reasons" else list(map(_number, values))
            place = raw.place_of(index)
        self.problems.add(place, column, what)
        return None

    def _category(self, raw: RawGroup) -> dict[str, str | None]:
        """Return the category, which may be None, or nothing if the first group has no such column."""
        if self.categorised is None:
            self.categorised = "category" in raw.row
        category = raw.row.get("category")
        if isinstance(category, int | float) and not isinstance(category, bool):
            category = str(category)
        if isinstance(category, str) and not is_sound(category):
            self.problems.add(raw.place, "category", SURROGATE)
        elif not isinstance(category, str | None):
            self.problems.add(
                raw.place, "category", f"it is {kind(category)}; it must be a string: rename the column."
            )
        elif category is not None and not self.categorised:
            self.problems.add(raw.place, "category", "it is given here, but not in the first group: give it to all.")
        return {"category": None if category is None else str(category)} if self.categorised else {}

    def _id(self, raw: RawGroup, prompt: Any, spelled: list[bytes]) -> str:
        """Return the given id, or one made from the content. The second of identical rows gets `-2`, and so on."""
        given = raw.row.get("id")
        if given is None:
            name = digest(b"group", canonical(prompt), *spelled).hex()
            self.ids[name] = self.ids.get(name, 0) + 1
            return name if self.ids[name] == 1 else f"{name}-{self.ids[name]}"
        name, problem = str(given), id_problem(given)
        if not problem and name in self.ids:
            problem = f"{name!r} is the id of an earlier row too: make ids differ, or remove the column to make them."
        if problem:
            self.problems.add(raw.place, "id", problem)
        self.ids[name] = 1
        return name


def id_problem(value: Any) -> str | None:
    """Return why a value cannot be the id of a group, or None."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        what = "empty" if value == "" else kind(value)
        return f"it is {what}; it must be a string or a whole number, not empty."
    return SURROGATE if isinstance(value, str) and not is_sound(value) else None


def _number(value: Any) -> float:
    """Return a checked score or weight as a number. True and false count as 1 and 0."""
    number = value.number() if isinstance(value, Cell) else float(value)
    assert number is not None
    return number


def _value_problem(name: str, value: Any) -> str | None:
    if name == "finish_reasons":
        if not isinstance(value, str | None):
            return 'it must be a list like ["stop", "length", null], one per response.'
        return SURROGATE if value is not None and not is_sound(value) else None
    one = PER_RESPONSE[name]
    if value is None:
        return f"the {one} is missing: give one for each response, or none at all."
    if isinstance(value, Cell):
        shown, value = str(value)[:24], value.number()
        if value is None:
            return f"the {one} is {shown!r}; it must be a number, or true or false."
    if isinstance(value, str) and (text := value.strip().casefold()) in TRUTH:
        return f"the {one} is a string: write {text} or {TRUTH[text]:.0f}, without quotes."
    if not isinstance(value, int | float):
        return f"the {one} is {kind(value)}; it must be a number, or true or false."
    if not abs(value) <= sys.float_info.max:  # also refuses NaN, and integers too large for a float
        return f"the {one} is {str(value)[:24]}; it must be finite. Remove the response or score it again."
    return f"the weight is {value}; it must be at least 0." if name == "weights" and value < 0 else None
