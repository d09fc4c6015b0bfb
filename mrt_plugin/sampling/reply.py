"""Parse the replies of an OpenAI-compatible endpoint. Everything is checked, since proxies may send anything."""

import json
import math
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from mrt_plugin.options import Api
from mrt_plugin.sampling.settings import Draw


class Garbage(Exception):
    """The body does not follow the protocol. The message names the problem."""


class _Token(BaseModel):
    logprob: float | None = None


class _Logprobs(BaseModel):
    content: list[_Token] | None = None  # of a chat
    token_logprobs: list[float | None] | None = None  # of a text completion


class _Message(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(BaseModel):
    message: _Message | None = None  # of a chat
    text: str | None = None  # of a text completion
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    completion_tokens: int | None = None


class _Body(BaseModel):
    model: str | int | None = None
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_reply(body: bytes, api: Api, asked: int) -> tuple[list[Draw], str | None]:
    """Return the draws in a body, at most `asked`, and the model that made them."""
    try:
        parsed = _Body.model_validate(json.loads(body))
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the body"
        raise Garbage(f"{where}: {first['msg']}") from None
    except (ValueError, RecursionError):
        raise Garbage("not JSON") from None
    draws = [_draw(choice, api) for choice in parsed.choices[:asked]]
    used = parsed.usage.completion_tokens if parsed.usage else None
    for draw in draws:
        draw.tokens = len(draw.logprobs) if draw.logprobs else used if len(parsed.choices) == 1 else None
    return draws, None if parsed.model is None else _sound(str(parsed.model))


def _draw(choice: _Choice, api: Api) -> Draw:
    given, message = choice.logprobs or _Logprobs(), choice.message
    text, thought, logprobs = choice.text, "", given.token_logprobs
    if api == "chat" and message is not None:
        if message.content is None and message.tool_calls:
            raise Garbage("a choice is a tool call, though no tools were offered")
        text, thought = message.content or "", message.reasoning_content or message.reasoning or ""
        logprobs = None if given.content is None else [token.logprob for token in given.content]
    elif api == "chat" or text is None:
        raise Garbage(f"a choice has no {'message' if api == 'chat' else 'text'}")
    finite = logprobs and [value if value is not None and math.isfinite(value) else None for value in logprobs]
    reason = choice.finish_reason
    return Draw(_sound(text), reason and _sound(reason), logprobs=finite, reasoning=_sound(thought) or None)


def shown(body: bytes, length: int = 200) -> str:
    """Return the beginning of a body for a message. Its secrets must already be masked."""
    return repr(body[:length].decode("utf-8", "replace")) + ("..." if len(body) > length else "")


def _sound(text: str) -> str:
    """Replace halves of surrogate pairs by U+FFFD: JSON can hold them, a file cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
