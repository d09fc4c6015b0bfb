"""Check groups. All requirements on a group are here."""

import math
from typing import Any

from mrt_plugin.groups.keys import canonical, digest, prompt_key
from mrt_plugin.groups.messages import SURROGATE, Part, clean_messages, has_text, is_sound, kind, response_text
from mrt_plugin.groups.problems import GroupReport, Problems
from mrt_plugin.groups.shapes import PER_RESPONSE, RawGroup


class GroupChecker:
    """Check groups one by one, and remember what must be consistent between them."""

    def __init__(self, problems: Problems, report: GroupReport) -> None:
        self.problems = problems
        self.report = report
        self.forms: dict[str, tuple[str, str]] = {}
        self.prompts: set[str] = set()
        self.ids: dict[str, int] = {}

    def check(self, raw: RawGroup) -> dict[str, Any] | None:
        """Return a group's row: N >= 1 responses that are not empty, each with one score, weight and finish reason.

        None if the group is dropped (counted in the report) or has a problem (recorded).
        """
        before = len(self.problems.found)
        prompt = self._text_or_messages(raw.prompt, "prompt", raw.place, raw.columns["prompt"])
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
        responses = [responses[index] for index in kept]
        spelled = sorted(map(canonical, responses))
        for _ in range(len(spelled) - len(set(spelled))):
            self.report.duplicate_responses.add(raw.place)
        key = prompt_key(prompt)
        if key in self.prompts:
            self.report.duplicate_prompts.add(raw.place)
        self.prompts.add(key)
        self.report.count_group(len(responses))
        return {"id": self._id(raw, prompt, spelled), "prompt": prompt, "responses": responses, **row}

    def _responses(self, raw: RawGroup) -> list[Any]:
        """Return the responses, with None for each empty one."""
        column = raw.columns["responses"]
        if not isinstance(raw.responses, list | None):
            what = f"it is {kind(raw.responses)}; it must be a list of responses, each a string or a list of messages."
            self.problems.add(raw.place, column, what)
            return []
        responses = []
        for index, response in enumerate(raw.responses or []):
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
                return value
            complaints.append(f"it is {form}, but {where} has {first}: use one form for all {part}s.")
        self.problems.add(place, column, complaints[0])
        return None

    def _per_response(self, raw: RawGroup, name: str) -> list[Any] | None:
        """Return the scores, weights or finish reasons. None if there are none, or after a problem."""
        values, column, place = getattr(raw, name), raw.columns[name], raw.place
        if raw.responses:
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
        elif isinstance(raw.responses, list) and len(values) != len(raw.responses):
            one = PER_RESPONSE[name].replace("_", " ")
            what = f"it has {len(values)} for {len(raw.responses)} responses: give one {one} for each response."
        else:
            found = ((index, _value_problem(name, value)) for index, value in enumerate(values))
            index, what = next((item for item in found if item[1]), (0, None))
            if what is None:
                return values if name == "finish_reasons" else [float(value) for value in values]
            place = raw.place_of(index)
        self.problems.add(place, column, what)
        return None

    def _id(self, raw: RawGroup, prompt: Any, spelled: list[bytes]) -> str:
        """Return the given id, or one made from the content. The second of identical rows gets `-2`, and so on."""
        if raw.id is None:
            name = digest(b"group", canonical(prompt), *spelled).hex()
            self.ids[name] = self.ids.get(name, 0) + 1
            return name if self.ids[name] == 1 else f"{name}-{self.ids[name]}"
        name, problem = str(raw.id), id_problem(raw.id)
        if not problem and name in self.ids:
            problem = (
                f"{name!r} is the id of an earlier row too: ids must differ. Remove the column to have them made."
            )
        if problem:
            self.problems.add(raw.place, "id", problem)
        self.ids[name] = 1
        return name


def id_problem(value: Any) -> str | None:
    """Return why a value cannot be a group's id, or None if it can."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        what = "empty" if value == "" else kind(value)
        return f"it is {what}; it must be a string or a whole number, not empty."
    return SURROGATE if isinstance(value, str) and not is_sound(value) else None


def _value_problem(name: str, value: Any) -> str | None:
    if name == "finish_reasons":
        if not isinstance(value, str | None):
            return 'it must be a list like ["stop", "length", null], one per response.'
        return SURROGATE if value is not None and not is_sound(value) else None
    one = PER_RESPONSE[name]
    if value is None:
        return f"the {one} is missing: give one for each response, or none at all."
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"the {one} is {kind(value)}; it must be a number."
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        finite = False
    if not finite:
        return f"the {one} is {str(value)[:24]}; it must be finite. Remove the response or score it again."
    return f"the weight is {value}; it must be at least 0." if name == "weights" and value < 0 else None
