"""Messages: their checks, and the marks that locate a turn in a rendered conversation."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Message = dict[str, Any]
"""A chat message: `role`, `content` (a string or a list of parts), and other keys that its template uses."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""The fields in which model families store a turn's thinking."""

THINK_TAG = re.compile(r"(</?think>)")


class EncodingError(ValueError):
    """A prompt or response cannot be converted to tokens. The message says why and what to do."""


def without_none(value: Any) -> Any:
    """Return a copy without None values. Arrow adds a key with None to every message if one message has the key."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_none(item) for item in value]
    return value


def prompt_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """Return the prompt as messages, or raise `EncodingError`. A string becomes one user turn."""
    messages = _messages(prompt, "prompt", "user")
    if messages[-1]["role"] == "assistant":
        raise EncodingError(
            "The prompt ends with an assistant's turn, so there is nothing to respond to. Move that turn into the "
            "response, or end the prompt with a user or tool message."
        )
    return messages


def response_messages(response: str | Sequence[Message]) -> list[Message]:
    """Return the response as messages, or raise `EncodingError`. A string becomes one assistant turn."""
    messages = _messages(response, "response", "assistant")
    for place, role in (("begins", messages[0]["role"]), ("ends", messages[-1]["role"])):
        if role != "assistant":
            raise EncodingError(
                f"The response {place} with a {role!r} message (roles: {roles(messages)}). A response is what the "
                f"model says: it {place} with an assistant's turn. Move the other messages into the prompt or drop "
                "them."
            )
    for index, message in enumerate(messages):
        texts = [content_text(message), *(message.get(key) or "" for key in REASONING), *called_functions(message)]
        if message["role"] == "assistant" and not any(map(str.strip, texts)):
            raise EncodingError(
                f"The assistant's turn in message {index} of the response is empty: there is nothing to train on. "
                "Drop the response or give the turn its text."
            )
    return messages


def roles(messages: Iterable[Message]) -> str:
    return ", ".join(message["role"] for message in messages)


def _messages(value: str | Sequence[Message], name: str, role: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, (list, tuple)) or not value:
        raise EncodingError(f"The {name} must be a string or a list of messages that is not empty, not {value!r}.")
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise EncodingError(
                f"Message {index} of the {name} is {message!r}. A message is a dict with a `role` and a `content`, "
                'like {"role": "user", "content": "Hi"}.'
            )
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise EncodingError(
                f"The content of message {index} of the {name} is a {type(message['content']).__name__}; it must be "
                "a string or a list of parts."
            )
    return list(without_none(value))


def content_text(message: Message) -> str:
    """Return the text of a message's content, with the parts of a list joined by newlines."""
    content = message.get("content") or ""
    parts = [{"text": content}] if isinstance(content, str) else content
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and "text" in part)


def called_functions(message: Message) -> list[str]:
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    return [call["name"] for call in calls if "name" in call]


def marked(message: Message, mark: Callable[[], str]) -> Message:
    """Return a copy in which a new mark replaces each text, between think tags and inside calls, so that a template
    takes the same branches for both."""
    copy = {**message, **{key: _marked(message[key], mark) for key in ("content", *REASONING) if key in message}}
    if message.get("tool_calls"):
        copy["tool_calls"] = [_marked_call(call, mark) for call in message["tool_calls"]]
    return copy


def _marked(value: Any, mark: Callable[[], str]) -> Any:
    """Mark the pieces of a text between its think tags, or the texts of a list of parts."""
    if isinstance(value, list):
        return [
            {**part, "text": _marked(part["text"], mark)} if isinstance(part, dict) and "text" in part else part
            for part in value
        ]
    if not isinstance(value, str):
        return value
    pieces = [
        piece.replace(piece.strip(), mark(), 1) if piece.strip() and not THINK_TAG.fullmatch(piece) else piece
        for piece in THINK_TAG.split(value)
    ]
    return "".join(pieces)


def _marked_call(call: dict[str, Any], mark: Callable[[], str]) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _marked_call(call["function"], mark)}
    copy = {**call, "name": mark()}
    arguments = call.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        copy["arguments"] = json.dumps({mark(): mark()})
    elif isinstance(arguments, dict) and arguments:
        copy["arguments"] = {mark(): mark()}
    return copy
