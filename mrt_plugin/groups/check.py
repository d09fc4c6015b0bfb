"""Check groups. All requirements on a group are here."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mrt_plugin.groups.keys import canonical, group_id, prompt_key
from mrt_plugin.groups.messages import (
    SURROGATE,
    Message,
    Part,
    clean_messages,
    has_text,
    is_sound,
    kind,
    response_text,
)
from mrt_plugin.groups.problems import GroupReport, Problems
from mrt_plugin.groups.shapes import PER_RESPONSE, RawGroup


@dataclass
class CheckedGroup:
    """A checked group: N >= 1 non-empty responses, each with one score, weight and finish reason if there are any."""

    id: str
    prompt: str | list[Message]
    responses: list[Any]
    scores: list[float] | None
    weights: list[float] | None
    finish_reasons: list[str | None] | None


class GroupChecker:
    """Check groups one by one, and remember what must be consistent between them."""

    def __init__(self, problems: Problems, report: GroupReport) -> None:
        self.problems = problems
        self.report = report
        self.forms: dict[str, tuple[str, str]] = {}
        self.prompts: set[str] = set()
        self.ids: dict[str, int] = {}

    def check_all(self, groups: Iterable[RawGroup]) -> Iterator[CheckedGroup]:
        """Yield the groups that can be trained on. Add problems to `problems` and count decisions in `report`."""
        for raw in groups:
            group = self.check(raw)
            if group:
                self.report.count_group(len(group.responses))
                yield group

    def check(self, raw: RawGroup) -> CheckedGroup | None:
        """Check one group. Return None if it is dropped (counted) or has a problem (recorded)."""
        before = len(self.problems.found)
        prompt = self._text_or_messages(raw.prompt, "prompt", raw.place, raw.columns["prompt"])
        if prompt is not None and not (has_text(prompt) if isinstance(prompt, str) else prompt):
            self.problems.add(raw.place, raw.columns["prompt"], "it is empty: write the prompt, or remove the row.")
        responses = self._responses(raw)
        scores = self._numbers(raw, "scores")
        weights = self._numbers(raw, "weights")
        finish_reasons = self._finish_reasons(raw)
        if raw.responses:
            for name in PER_RESPONSE:
                self._agree(raw, name)
        if prompt is None or len(self.problems.found) > before:
            return None

        kept = [index for index, response in enumerate(responses) if response is not None]
        if not kept:
            self.report.groups_without_responses.add(raw.place)
            return None
        responses, scores, weights, finish_reasons = (
            values and [values[index] for index in kept] for values in (responses, scores, weights, finish_reasons)
        )
        if weights is not None and not sum(weights) > 0:
            what = "all weights are 0: give at least one response a positive weight."
            self.problems.add(raw.place, raw.columns["weights"], what)
        self._count_repeats(raw, prompt, responses)
        return CheckedGroup(self._id(raw, prompt, responses), prompt, responses, scores, weights, finish_reasons)

    def _responses(self, raw: RawGroup) -> list[Any]:
        """Return the responses, with None for each empty one."""
        column = raw.columns["responses"]
        if raw.responses is None:
            return []
        if not isinstance(raw.responses, list):
            what = f"it is {kind(raw.responses)}; it must be a list of responses, each a string or a list of messages."
            self.problems.add(raw.place, column, what)
            return []
        responses = []
        for index, value in enumerate(raw.responses):
            response = None
            if value is not None:
                found = len(self.problems.found)
                response = self._text_or_messages(value, "response", raw.place_of(index), column)
                if len(self.problems.found) > found:
                    continue
            if response is None or not has_text(response_text(response)):
                self.report.empty_responses.add(raw.place_of(index))
                response = None
            responses.append(response)
        return responses

    def _text_or_messages(self, value: Any, part: Part, place: str, column: str) -> Any:
        """Return the string or the cleaned messages, or None after a problem."""
        if value is None:
            self.problems.add(place, column, f"it is missing: write the {part}, or remove the row.")
            return None
        if isinstance(value, str):
            if not is_sound(value):
                self.problems.add(place, column, SURROGATE)
                return None
            form = "a string"
        elif isinstance(value, list):
            found = len(self.problems.found)
            value = clean_messages(value, part, lambda what: self.problems.add(place, column, what))
            if len(self.problems.found) > found:
                return None
            form = "a list of messages"
        else:
            self.problems.add(place, column, f"it is {kind(value)}; it must be a string or a list of messages.")
            return None
        first, where = self.forms.setdefault(part, (form, place))
        if form != first:
            self.problems.add(place, column, f"it is {form}, but {where} has {first}: use one form for all {part}s.")
            return None
        return value

    def _list(self, raw: RawGroup, name: str, form: str) -> list[Any] | None:
        """Return a column with one value per response, or None if it is absent or after a problem."""
        values, one = getattr(raw, name), PER_RESPONSE[name].replace("_", " ")
        if values is None:
            return None
        if not isinstance(values, list):
            what = f"it is {kind(values)}; it must be a list of {form}, one per response."
        elif isinstance(raw.responses, list) and len(values) != len(raw.responses):
            what = f"it has {len(values)} for {len(raw.responses)} responses: give one {one} for each response."
        else:
            return values
        self.problems.add(raw.place, raw.columns[name], what)
        return None

    def _numbers(self, raw: RawGroup, name: str) -> list[float] | None:
        """Return the scores or weights: one finite number per response."""
        values, column, one = self._list(raw, name, "numbers"), raw.columns[name], name[:-1]
        if values is None:
            return None
        for index, value in enumerate(values):
            if value is None:
                what = f"the {one} is missing: give one for each response, or none at all."
            elif isinstance(value, bool) or not isinstance(value, int | float):
                what = f"the {one} is {kind(value)}; it must be a number."
            elif not _is_finite(value):
                what = f"the {one} is {str(value)[:24]}; it must be finite. Remove the response or score it again."
            elif name == "weights" and value < 0:
                what = f"the weight is {value}; it must be at least 0."
            else:
                continue
            self.problems.add(raw.place_of(index), column, what)
            return None
        return [float(value) for value in values]

    def _finish_reasons(self, raw: RawGroup) -> list[str | None] | None:
        """Return the finish reason of each response as its generator reported it, or None where it is unknown."""
        values = self._list(raw, "finish_reasons", "strings")
        if values is None:
            return None
        what = None
        if not all(value is None or isinstance(value, str) for value in values):
            what = 'it must be a list like ["stop", "length", null], one per response.'
        elif not all(value is None or is_sound(value) for value in values):
            what = SURROGATE
        if what:
            self.problems.add(raw.place, raw.columns["finish_reasons"], what)
        return None if what else values

    def _agree(self, raw: RawGroup, name: str) -> None:
        state = "absent" if getattr(raw, name) is None else "given"
        first, where = self.forms.setdefault(name, (state, raw.place))
        if state != first:
            what = f"they are {state} here, but {first} in {where}: give {name} for all groups or for none."
            self.problems.add(raw.place, raw.columns[name], what)

    def _count_repeats(self, raw: RawGroup, prompt: Any, responses: list[Any]) -> None:
        seen: set[bytes] = set()
        for response in responses:
            spelled = canonical(response)
            if spelled in seen:
                self.report.duplicate_responses.add(raw.place)
            seen.add(spelled)
        key = prompt_key(prompt)
        if key in self.prompts:
            self.report.duplicate_prompts.add(raw.place)
        self.prompts.add(key)

    def _id(self, raw: RawGroup, prompt: Any, responses: list[Any]) -> str:
        """Return the given id, or one made from the content. The second of identical rows gets `-2`, and so on."""
        if raw.id is None:
            name = group_id(prompt, responses)
            self.ids[name] = self.ids.get(name, 0) + 1
            return name if self.ids[name] == 1 else f"{name}-{self.ids[name]}"
        name, problem = str(raw.id), id_problem(raw.id)
        if problem:
            self.problems.add(raw.place, "id", problem)
        elif name in self.ids:
            what = f"{name!r} is the id of an earlier row too: ids must differ. Remove the column to have them made."
            self.problems.add(raw.place, "id", what)
        self.ids[name] = 1
        return name


def id_problem(value: Any) -> str | None:
    """Return why a value cannot be a group's id, or None if it can."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        what = "empty" if value == "" else kind(value)
        return f"it is {what}; it must be a string or a whole number, not empty."
    return SURROGATE if isinstance(value, str) and not is_sound(value) else None


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False
