"""Check the messages of a prompt or a response, and read their text."""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any, Literal

from datasets import Json

Message = dict[str, Any]
Part = Literal["prompt", "response"]

FOLLOWERS = {
    "start of the prompt": ("system", "developer", "user"),
    "start of the response": ("assistant",),
    "system": ("system", "developer", "user"),
    "developer": ("system", "developer", "user"),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""The roles that may follow each role. Most chat templates refuse other orders."""

ROLES = ("system", "developer", "user", "assistant", "tool")

_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff]"
)
"""Any character except white space, controls, the blank Braille cell and Unicode's default ignorable code points."""
_SPACES = re.compile(r"\s+")
_UNIT = re.compile(r"\w+")
NO_SPACES = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
"""Scripts written without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters."""

SURROGATE = "it holds half of a surrogate pair (a broken emoji, most likely): repair or remove it."


def has_text(text: str) -> bool:
    """Return whether a text has visible characters. White space, controls and zero-width characters do not count."""
    return _VISIBLE.search(text) is not None


def is_sound(text: str) -> bool:
    """Return whether the text can be written to a file. JSON allows halves of surrogate pairs, UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_empty_fields(messages: list[Any]) -> list[Any]:
    """Return the messages without fields that are None: `"name": null` means the same as no `name`."""
    return [
        {key: field for key, field in item.items() if field is not None} if isinstance(item, dict) else item
        for item in messages
    ]


def clean_messages(value: list[Any], part: Part, complain: Callable[[str], None]) -> list[Message]:
    """Check the content and order of messages, and return them without empty fields. `complain` gets a problem."""
    messages = without_empty_fields(value)
    for index, message in enumerate(messages):
        if problem := _message_problem(message):
            complain(f"message {index} {problem}")
            return []
    before = f"start of the {part}"
    for index, message in enumerate(messages):
        if message["role"] not in FOLLOWERS[before]:
            after = f"at the {before}" if index == 0 else f"after a message from `{before}`"
            hint = "merge or reorder the messages"
            if part == "response" and index == 0:
                hint = "a response starts with the assistant's turn; what comes before it belongs to the prompt"
            only = " or ".join(f"`{role}`" for role in FOLLOWERS[before])
            complain(f"message {index} is from `{message['role']}` {after}, where only {only} can be: {hint}.")
            return []
        before = message["role"]
    if part == "prompt" and before == "assistant":
        complain("the prompt ends with an assistant turn: move that turn into the responses.")
    elif part == "prompt" and before in ("system", "developer"):
        complain("the prompt has no user message: add one.")
    elif part == "response" and before not in ("assistant", "start of the response"):
        complain(f"the response ends with a message from `{before}`: it must end with an assistant turn.")
    return messages


def _message_problem(message: Any) -> str | None:
    if not isinstance(message, dict):
        return f"is {kind(message)}, not an object with `role` and `content`."
    if "role" not in message:
        hint = " (rename `from` to `role` and `value` to `content`, or use source='fields:messages=COLUMN')"
        hint = hint if "from" in message else ""
        return f"has no `role`{hint}: its fields are {', '.join(sorted(message)) or 'none'}."
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        return f"has the unknown role {role!r}: use one of {', '.join(ROLES)}."
    if isinstance(content, list):
        for entry in content:
            if not isinstance(entry, dict) or entry.get("type") != "text" or not isinstance(entry.get("text"), str):
                return 'has content that is not text: only parts like {"type": "text", "text": ...} can be trained on.'
    elif content is not None and not isinstance(content, str):
        return f"has content that is {kind(content)}, not a string."
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return 'has `tool_calls` that are not a list of objects like {"type": "function", "function": ...}.'
    if role == "user" and not has_text(message_text(message)):
        return "is from `user` and has no text: write what the user says in `content`."
    if role == "assistant" and content is None and len(message) == 1:
        return "is from `assistant` and has no content: give it `content` or `tool_calls`."
    try:  # whether an Arrow file can store it unchanged
        text = json.dumps(message, ensure_ascii=False, allow_nan=False)
        text.encode()
        Json().decode_example(text)
    except UnicodeEncodeError:
        return SURROGATE.removeprefix("it ")
    except (TypeError, ValueError) as problem:
        return f"holds a value that JSON cannot carry ({problem}): write it as a string."
    return None


def message_text(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def response_text(response: str | list[Message]) -> str:
    """Return a response as one text for comparisons: what the assistant says and the calls it makes."""
    if isinstance(response, str):
        return response
    said = []
    for message in response:
        if message["role"] == "assistant":
            said.append(message_text(message))
            said += [json.dumps(call, sort_keys=True, ensure_ascii=False) for call in message.get("tool_calls") or []]
    return "\n".join(part for part in said if part)


def prompt_text(prompt: Any) -> str:
    """Return the text of a prompt (string or messages), one message after the other."""
    return prompt if isinstance(prompt, str) else "\n".join(map(message_text, prompt))


def normalised(text: str) -> str:
    """Remove differences that readers ignore: case, repeated white space and compatibility forms (NFKC)."""
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def units(text: str) -> list[str]:
    """Return the words of a text, or its characters in scripts without spaces."""
    found = _UNIT.findall(text.casefold())
    if not NO_SPACES.search(text):
        return found
    return [unit for word in found for unit in (list(word) if NO_SPACES.search(word) else [word])]


def kind(value: Any) -> str:
    """Return the type of a value in words that fit both JSON and Python."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "missing"}
    number = "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    return names.get(type(value), number)
