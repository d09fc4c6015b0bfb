"""Parse the replies of an OpenAI-compatible endpoint. Everything is checked, since proxies may send anything."""

import json
import math
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field, ValidationError

from mrt_plugin.options import Api
from mrt_plugin.sampling.settings import Draw

C = TypeVar("C")


class Garbage(Exception):
    """The body does not follow the protocol. The message names the problem."""


class _Token(BaseModel):
    logprob: float | None = None


class _ChatLogprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _ChatChoice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _ChatLogprobs | None = None

    def draw(self) -> Draw:
        if self.message.content is None and self.message.tool_calls:
            raise Garbage("a choice is a tool call, though no tools were offered")
        tokens = self.logprobs.content if self.logprobs else None
        logprobs = None if tokens is None else [token.logprob for token in tokens]
        thought = self.message.reasoning_content or self.message.reasoning or ""
        return _draw(self.message.content or "", self.finish_reason, logprobs, thought)


class _TextLogprobs(BaseModel):
    token_logprobs: list[float | None] | None = None


class _TextChoice(BaseModel):
    text: str
    finish_reason: str | None = None
    logprobs: _TextLogprobs | None = None

    def draw(self) -> Draw:
        return _draw(self.text, self.finish_reason, self.logprobs.token_logprobs if self.logprobs else None)


class _Usage(BaseModel):
    completion_tokens: int | None = None


class _Body(BaseModel, Generic[C]):
    model: str | int | None = None
    choices: list[C] = Field(min_length=1)
    usage: _Usage | None = None


def read_reply(body: bytes, api: Api, asked: int) -> tuple[list[Draw], str | None]:
    """Return the draws in a body, at most `asked`, and the model that made them."""
    shape: Any = _Body[_ChatChoice] if api == "chat" else _Body[_TextChoice]
    try:
        parsed = shape.model_validate(json.loads(body))
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the body"
        raise Garbage(f"{where}: {first['msg']}") from None
    except (ValueError, RecursionError):
        raise Garbage("not JSON") from None
    draws = [choice.draw() for choice in parsed.choices[:asked]]
    used = parsed.usage.completion_tokens if parsed.usage else None
    for draw in draws:
        draw.tokens = len(draw.logprobs) if draw.logprobs else used if len(parsed.choices) == 1 else None
    return draws, None if parsed.model is None else _sound(str(parsed.model))


def shown(body: bytes, length: int = 200) -> str:
    """Return the beginning of a body for a message. Its secrets must already be masked."""
    return repr(body[:length].decode("utf-8", "replace")) + ("..." if len(body) > length else "")


def _draw(text: str, reason: str | None, logprobs: list[float | None] | None, thought: str = "") -> Draw:
    finite = logprobs and [value if value is not None and math.isfinite(value) else None for value in logprobs]
    return Draw(_sound(text), reason and _sound(reason), logprobs=finite, reasoning=_sound(thought) or None)


def _sound(text: str) -> str:
    """Replace halves of surrogate pairs by U+FFFD: JSON can hold them, a file cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
