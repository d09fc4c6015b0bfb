"""The texts of prompts and responses that the curation rules read, and when two texts are equal."""

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
    """Return the text of a prompt (string or messages), one message after the other."""
    return prompt if isinstance(prompt, str) else "\n".join(map(message_text, prompt))


def edit_response(response: Any, edit: Callable[[str], str]) -> Any:
    """Return the response with `edit` applied to the assistant's text, or the same object if nothing changed."""
    if isinstance(response, str):
        return edit(response)
    messages = [
        {**message, "content": edit(message["content"])}
        if message["role"] == "assistant" and isinstance(message.get("content"), str)
        else message
        for message in response
    ]
    return response if messages == response else messages


def normalised(text: str) -> str:
    """Remove differences that readers ignore: case, repeated white space and compatibility forms (NFKC)."""
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def units(text: str) -> list[str]:
    """Return the words of a text, or its characters in scripts without spaces."""
    found = _UNIT.findall(text.casefold())
    if not NO_SPACES.search(text):
        return found
    return [unit for word in found for unit in (list(word) if NO_SPACES.search(word) else [word])]
