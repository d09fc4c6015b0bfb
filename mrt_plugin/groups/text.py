"""Texts as the rules see them: of prompts, of responses, and what counts as the same text."""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from mrt_plugin.groups.messages import message_text

_SPACES = re.compile(r"\s+")
_UNIT = re.compile(r"\w+")
NO_SPACES = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
"""Scripts written without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters."""


def prompt_text(prompt: Any) -> str:
    """All that is said in a prompt, string or messages, one message after the other."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message_text(message) for message in prompt)


def last_text(response: Any) -> str:
    """What a response ends with: the string, or its last message's content."""
    return response if isinstance(response, str) else message_text(response[-1])


def edit_response(response: Any, edit: Callable[[str], str]) -> Any:
    """The response with `edit` applied to what the assistant says; the same object if nothing changed."""
    if isinstance(response, str):
        return edit(response)
    messages = []
    for message in response:
        content = message.get("content")
        if message["role"] == "assistant" and isinstance(content, str):
            edited = edit(content)
            message = message if edited == content else {**message, "content": edited}
        messages.append(message)
    return response if all(new is old for new, old in zip(messages, response, strict=True)) else messages


def normalised(text: str) -> str:
    """The text without what makes no difference to a reader: case, runs of white space, compatibility forms (NFKC)."""
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def units(text: str) -> list[str]:
    """The words of a text; in scripts without spaces, its characters.

    Example:

    >>> units("Two words, 東京")
    ['two', 'words', '東', '京']
    """
    found = _UNIT.findall(text.casefold())
    if not NO_SPACES.search(text):
        return found
    return [unit for word in found for unit in (list(word) if NO_SPACES.search(word) else [word])]
