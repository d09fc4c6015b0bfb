"""Draw responses from an OpenAI-compatible endpoint, with concurrent requests and retries."""

import asyncio
import json
import math
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, Field, ValidationError

from mrt_plugin.endpoint.jobs import (
    Draw,
    EndpointOptions,
    Job,
    Reply,
    SampleReport,
    SamplingSettings,
    SamplingTask,
    draw_seed,
)
from mrt_plugin.endpoint.masking import LONG, mask, mask_fields, mask_typed, masked_log, secrets_in
from mrt_plugin.options import Api

T = TypeVar("T")

GIVE_UP = 8
"""A run stops after this many requests in a row failed, each after its retries."""
LONGEST_WAIT = 300.0
"""The longest wait before a retry, in seconds, even if a server requests more."""
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
PATHS: dict[Api, str] = {"chat": "/chat/completions", "completions": "/completions"}
TRY_AGAIN = {408, 409, 425, 429}
"""Status codes that are retried, as are all 5xx codes."""
MISTAKEN = {401, 403, 404, 405, 410}
"""Status codes for a wrong address, key or model name. No other request would succeed."""
HINTS = {401: "the API key is missing or wrong (api_key_env)", 403: "the API key may not do this"}


class EndpointError(RuntimeError):
    """The endpoint cannot be used as configured. The message gives the cause and the remedy."""


class _LimitReached(EndpointError):
    """No more requests may be made."""


class _Failed(Exception):
    """A request failed after all retries."""


class _Rejected(_Failed):
    """The endpoint rejected this prompt."""


class _Garbage(Exception):
    """The body of a reply does not follow the protocol. The message names the problem."""


@dataclass
class Endpoint(EndpointOptions):
    """An OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, TGI, Ollama, or a hosted one.

    Args:
        url: the address up to `/v1`, or the full address of the chat or text completions.
        model: the endpoint's name for the model. Optional if the endpoint serves only one.

    The other arguments are the `EndpointOptions`, by name.

    Raises:
        EndpointError: for a malformed address, or if `api_key_env` names no variable.

    Example:

    ```python
    from mrt_plugin.sampling import Endpoint

    endpoint = Endpoint("http://localhost:8000/v1", concurrency=8)
    ```
    """

    url: str = field(repr=False)
    model: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ValueError(f"requests_per_minute={self.requests_per_minute!r} must be above 0.")
        self.shown = mask_typed(str(self.url))
        try:
            address = httpx2.URL(self.url)
        except (httpx2.InvalidURL, TypeError):
            address = httpx2.URL()
        if address.scheme not in ("http", "https") or not address.host:
            raise EndpointError(f"endpoint {self.shown!r} is not an address: write http://HOST:PORT/v1 for instance.")
        if address.userinfo:
            raise EndpointError("endpoint: leave the key out of the address; name a variable by api_key_env.")
        path = address.path.rstrip("/")
        for end in (*PATHS.values(), "/models"):
            path = path.removesuffix(end)
        self._base = address.copy_with(path=path)
        self._key = None if self.api_key_env is None else os.environ.get(self.api_key_env, "").strip()
        if self._key is not None and not (self._key and self._key.isascii() and self._key.isprintable()):
            why = "what it holds cannot be a key" if self._key else "no such environment variable, or it is empty"
            raise EndpointError(f"api_key_env={self.api_key_env!r}: {why}.")
        self._secrets = [*secrets_in(self.url, self.extra), *([self._key] if self._key else [])]

    def identity(self) -> dict[str, Any]:
        """Return what the draws depend on besides the settings. Ask the endpoint for its model if none is given."""
        if self.model is None:
            self.model = _run(_Requests(self, SampleReport()).only_model())
        return {"endpoint": self.api, "model": self.model, "extra": mask_fields(self.extra)}

    def draw(self, task: SamplingTask) -> None:
        self.identity()
        _run(_Requests(self, task.report).draw_all(task))

    def _clean(self, body: bytes, at_least: int = 1) -> bytes:
        """Mask secrets of `at_least` characters in a complete body."""
        secrets = [secret for secret in self._secrets if len(secret) >= at_least]
        return mask(body.decode("latin-1"), secrets).encode("latin-1") if secrets else body


class _Requests:
    """The requests of one run."""

    def __init__(self, endpoint: Endpoint, report: SampleReport) -> None:
        self.endpoint, self.report = endpoint, report
        self.succeeded = False
        self.failures = 0  # in a row
        self.gap = 60 / endpoint.requests_per_minute if endpoint.requests_per_minute else 0.0
        self.next_start = self.held_until = 0.0
        self.limit: _LimitReached | None = None

    async def draw_all(self, task: SamplingTask) -> None:
        todo = iter([job for job in task.jobs if job.have < job.wanted])
        self.succeeded = any(job.have for job in task.jobs)
        try:
            async with self._client() as client, asyncio.TaskGroup() as workers:
                for _ in range(self.endpoint.concurrency):
                    workers.create_task(self._work(todo, client, task))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first is the cause
        if self.limit:
            raise self.limit

    async def only_model(self) -> str:
        try:
            async with self._client() as client:
                body = await self._send(client, "GET", "/models", None, bytes)
            names = [str(entry["id"]) for entry in json.loads(body)["data"]]
        except (_Failed, ValueError, KeyError, TypeError, RecursionError) as problem:
            raise EndpointError(f"{self.endpoint.shown}: it does not say which models it has ({problem}).") from None
        if len(names) != 1:
            raise EndpointError(f"{self.endpoint.shown} has {len(names)} models; name one: {', '.join(names[:20])}.")
        return names[0]

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx2.AsyncClient]:
        endpoint = self.endpoint
        client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {endpoint._key}"} if endpoint._key else None,
            timeout=httpx2.Timeout(endpoint.timeout, connect=min(10.0, endpoint.timeout)),
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
            trust_env=endpoint._base.host not in LOOPBACK,  # a proxy cannot reach servers on this machine
        )
        with masked_log("httpx2", endpoint._secrets):
            async with client:
                yield client

    async def _work(self, todo: Iterator[Job], client: httpx2.AsyncClient, task: SamplingTask) -> None:
        api, report = self.endpoint.api, self.report
        for job in todo:
            start, end = job.first + job.have, job.first + job.wanted
            try:
                while start < end:
                    asked = min(end - start, self.endpoint.per_request or job.wanted)
                    read = partial(_read_reply, api=api, asked=asked)
                    body = self._body(job, start, asked, task.settings)
                    draws, model = await self._send(client, "POST", PATHS[api], body, read)
                    self.succeeded, self.failures = True, 0
                    task.record([Reply(job.key, start, draws, model)])
                    start += len(draws)
            except _LimitReached as problem:
                self.limit = problem  # raised when the other requests are answered: they are paid for
                return
            except _Failed as problem:
                if isinstance(problem, _Rejected) and self.succeeded:
                    task.record([Reply(job.key, start, rejected=str(problem))])
                    continue
                # If none succeeded yet, all requests may have a problem, so the next run tries this one again.
                report.unfinished += end - start
                report.first_failure = report.first_failure or str(problem)
                self.failures += 1
                if self.failures >= GIVE_UP:
                    what = f"{self.endpoint.shown}: {self.failures} requests in a row failed; the last: {problem}"
                    raise EndpointError(f"{what} The same command goes on from there.") from None

    def _body(self, job: Job, start: int, asked: int, settings: SamplingSettings) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "n": asked,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "seed": draw_seed(settings, job.key, start),
            "stop": list(settings.stop) or None,
        }
        if self.endpoint.api == "chat":
            body["messages"] = [{"role": "user", "content": job.prompt}] if isinstance(job.prompt, str) else job.prompt
            body["logprobs"] = settings.logprobs or None
        else:
            if not isinstance(job.prompt, str):
                raise EndpointError(f"prompt {job.id!r} is a list of messages, which need api='chat'.")
            body["prompt"] = job.prompt
            body["logprobs"] = 0 if settings.logprobs else None  # 0 alternatives, and the chosen token itself
        return {name: value for name, value in (body | self.endpoint.extra).items() if value is not None}

    async def _send(
        self, client: httpx2.AsyncClient, method: str, path: str, body: Any, read: Callable[[bytes], T]
    ) -> T:
        """Send a request, with retries, and return what `read` makes of a successful answer."""
        endpoint = self.endpoint
        url = endpoint._base.copy_with(path=endpoint._base.path + path)
        for attempt in range(endpoint.retries + 1):
            await self._turn()
            self._check_limit()
            self.report.requests += 1
            self.report.retries += attempt > 0
            wait = None
            try:
                async with asyncio.timeout(endpoint.timeout):
                    response = await client.request(method, url, json=body)
                if response.is_success:
                    return read(endpoint._clean(response.content, at_least=LONG))
                why = f"HTTP {response.status_code}: {_shown(endpoint._clean(response.content))}"
                status = response.status_code
                if status < 400 or status in MISTAKEN:
                    what = HINTS.get(status, "check the address and the model's name")
                    raise EndpointError(mask(f"{endpoint.shown}: {what}. {why}", endpoint._secrets))
                if status < 500 and status not in TRY_AGAIN:
                    raise _Rejected(mask(why, endpoint._secrets))
                wait = asked_wait(response.headers.get("Retry-After"))
                if wait is not None and status in (429, 503):  # too many requests: start none
                    self.held_until = max(self.held_until, asyncio.get_running_loop().time() + wait)
            except TimeoutError:
                why = f"no answer within {endpoint.timeout:g} s."
            except (httpx2.TransportError, httpx2.DecodingError) as problem:
                why = f"{type(problem).__name__}: {problem}."
            except _Garbage as problem:
                begins = _shown(endpoint._clean(response.content))
                why = f"a reply that makes no sense: {problem}; it begins {begins}."
            if attempt < endpoint.retries:
                self._check_limit()
                # Random, so that requests that failed together are not retried together.
                backoff = min(endpoint.backoff * 2.0**attempt, 60.0) * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(wait or 0.0, backoff))
        raise _Failed(mask(f"after {attempt + 1} tries: {why}", endpoint._secrets))

    def _check_limit(self) -> None:
        most = self.endpoint.max_requests
        if most is not None and self.report.requests >= most:
            what = f"{most:,} requests were made, which is the limit that was set"
            raise _LimitReached(
                f"{self.endpoint.shown}: {what}. Answers are kept: raise it, and the same command goes on."
            )

    async def _turn(self) -> None:
        """Wait until a request may start: evenly spaced, and not while the server asks to wait."""
        now = asyncio.get_running_loop().time
        start = max(now(), self.next_start)
        self.next_start = start + self.gap
        await asyncio.sleep(start - now())
        while (left := self.held_until - now()) > 0:
            await asyncio.sleep(left)


def asked_wait(retry_after: str | None) -> float | None:
    """Return the seconds that a `Retry-After` header (a number or a date) requests, or None if it is invalid."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after or "") - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also inside a notebook, where an event loop is already running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


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


def _read_reply(body: bytes, api: Api, asked: int) -> tuple[list[Draw], str | None]:
    """Return the draws in a body, at most `asked`, and the model that made them."""
    try:
        parsed = _Body.model_validate(json.loads(body))
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the body"
        raise _Garbage(f"{where}: {first['msg']}") from None
    except (ValueError, RecursionError):
        raise _Garbage("not JSON") from None
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
            raise _Garbage("a choice is a tool call, though no tools were offered")
        text, thought = message.content or "", message.reasoning_content or message.reasoning or ""
        logprobs = None if given.content is None else [token.logprob for token in given.content]
    elif api == "chat" or text is None:
        raise _Garbage(f"a choice has no {'message' if api == 'chat' else 'text'}")
    finite = logprobs and [value if value is not None and math.isfinite(value) else None for value in logprobs]
    reason = choice.finish_reason
    return Draw(_sound(text), reason and _sound(reason), logprobs=finite, reasoning=_sound(thought) or None)


def _shown(body: bytes, length: int = 200) -> str:
    """Return the beginning of a body for a message. Its secrets must already be masked."""
    return repr(body[:length].decode("utf-8", "replace")) + ("..." if len(body) > length else "")


def _sound(text: str) -> str:
    """Replace halves of surrogate pairs by U+FFFD: JSON can hold them, a file cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
