"""Draw responses from an OpenAI-compatible endpoint, with concurrent requests and retries."""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2

from mrt_plugin.options import Api
from mrt_plugin.sampling.masking import LONG, mask, mask_fields, mask_typed, masked_log, secrets_in
from mrt_plugin.sampling.pace import Pace, asked_wait, backoff
from mrt_plugin.sampling.reply import Garbage, read_reply, shown
from mrt_plugin.sampling.settings import Job, Reply, SampleReport, SamplingSettings, draw_seed

logger = logging.getLogger(__name__)

GIVE_UP = 8
"""A run stops after this many requests in a row failed, each after its retries.

The server is then down, or the request is wrong for it.
"""

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
PATHS: dict[Api, str] = {"chat": "/chat/completions", "completions": "/completions"}
TRY_AGAIN = {408, 409, 425, 429}
"""Status codes that are retried, as are all 5xx codes."""
MISTAKEN = {401, 403, 404, 405, 410}
"""Status codes for a wrong address, key or model name. No other request would succeed."""


class EndpointError(RuntimeError):
    """The endpoint cannot be used as configured. The message gives the cause and the remedy."""


class _Failed(Exception):
    """A request failed after all retries."""


class _Rejected(Exception):
    """The endpoint rejected this prompt."""


@dataclass
class Endpoint:
    """An OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, TGI, Ollama, or a hosted one.

    Args:
        url: the address up to `/v1`, or the full address of the chat or text completions.
        model: the endpoint's name for the model. Optional if the endpoint serves only one.
        api: `chat` sends messages, and the server applies the chat template. `completions` sends text unchanged.
        api_key_env: the environment variable that holds the API key. The key is sent but never written to a file.
        concurrency: the number of requests at a time.
        requests_per_minute: the most requests started per minute. None for no limit.
        per_request: responses per request (`n`). By default all that a prompt still needs. Use 1 for endpoints that
            refuse more.
        retries: how often a request is retried after a temporary failure. 8 retries take about two minutes.
        timeout: the most seconds for one request.
        backoff: seconds before the first retry. Doubles for each further retry.
        extra: more fields of the request's body. A field set to None is omitted from the body.

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
    api: Api = "chat"
    api_key_env: str | None = None
    concurrency: int = 16
    requests_per_minute: float | None = None
    per_request: int | None = None
    retries: int = 8
    timeout: float = 600.0
    backoff: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.api not in PATHS:
            raise ValueError(f"api={self.api!r} is unknown: choose one of {', '.join(PATHS)}.")
        for name, lowest in (("concurrency", 1), ("per_request", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name}={value!r} is too small: it must be at least {lowest}.")
        for name in ("requests_per_minute", "timeout", "backoff"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value!r} must be above 0.")
        self.shown = mask_typed(str(self.url))
        try:
            address = httpx2.URL(self.url)
        except (httpx2.InvalidURL, TypeError) as problem:
            why = mask_typed(str(problem))
            raise EndpointError(f"endpoint {self.shown!r} is not an address: {why}.") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise EndpointError(f"endpoint {self.shown!r} is not an address: write http://HOST:PORT/v1 for instance.")
        if address.userinfo:
            raise EndpointError("endpoint: leave the key out of the address; name a variable by api_key_env.")
        path = address.path.rstrip("/")
        for end in (*PATHS.values(), "/models"):
            path = path.removesuffix(end)
        self._base = address.copy_with(path=path)
        self._key = _key(self.api_key_env)
        self._secrets = [*secrets_in(self.url, self.extra), *([self._key] if self._key else [])]

    def identity(self) -> dict[str, Any]:
        """Return what the draws depend on besides the settings. If no model was given, ask the endpoint for its name.

        Raises:
            EndpointError: if the model's name cannot be determined.
        """
        if self.model is None:
            self.model = _run(_Session(self, None, SampleReport()).only_model())
        return {"endpoint": self.api, "model": self.model, "extra": mask_fields(self.extra)}

    def draw(
        self,
        jobs: Sequence[tuple[Job, int]],
        settings: SamplingSettings,
        record: Callable[[list[Reply]], None],
        report: SampleReport,
    ) -> None:
        """Draw the missing responses of each job.

        Args:
            jobs: the jobs, each with the number of draws it already has.
            settings: the sampling settings.
            record: called with every reply before the next request starts in its place.
            report: counts requests, retries and failed draws.

        Raises:
            EndpointError: if the endpoint cannot be used as configured, or stopped answering.
        """
        if self.model is None:
            self.identity()
        _run(_Session(self, settings, report).draw_all(jobs, record))


@dataclass
class _Session:
    """The requests of one run."""

    endpoint: Endpoint
    settings: SamplingSettings | None
    report: SampleReport
    succeeded: bool = False
    failures: int = 0
    """Consecutive failed requests."""

    async def draw_all(self, jobs: Sequence[tuple[Job, int]], record: Callable[[list[Reply]], None]) -> None:
        todo = iter([(job, have) for job, have in jobs if have < job.wanted])
        self.succeeded = any(have for _, have in jobs)
        pace = Pace(self.endpoint.requests_per_minute)
        with masked_log("httpx2", self.endpoint._secrets):
            async with self._client() as client, asyncio.TaskGroup() as workers:
                for _ in range(self.endpoint.concurrency):
                    workers.create_task(self._work(todo, client, pace, record))

    async def only_model(self) -> str:
        """Return the name of the only model that the endpoint serves."""
        place = self.endpoint.shown
        with masked_log("httpx2", self.endpoint._secrets):
            async with self._client() as client:
                try:
                    body = await self._send(client, Pace(None), "GET", "/models", None)
                    names = [str(entry["id"]) for entry in json.loads(body)["data"]]
                except (_Failed, _Rejected, ValueError, KeyError, TypeError, RecursionError) as problem:
                    raise EndpointError(f"{place}: it does not say which models it has ({problem}).") from None
        if len(names) != 1:
            raise EndpointError(f"{place} has {len(names)} models; name one: {', '.join(names[:20])}.")
        return names[0]

    def _client(self) -> httpx2.AsyncClient:
        endpoint = self.endpoint
        return httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {endpoint._key}"} if endpoint._key else None,
            timeout=httpx2.Timeout(endpoint.timeout, connect=min(10.0, endpoint.timeout)),
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
            trust_env=endpoint._base.host not in LOOPBACK,  # a proxy cannot reach servers on this machine
        )

    async def _work(
        self,
        todo: Iterator[tuple[Job, int]],
        client: httpx2.AsyncClient,
        pace: Pace,
        record: Callable[[list[Reply]], None],
    ) -> None:
        for job, have in todo:
            start, end = job.first + have, job.first + job.wanted
            try:
                while start < end:
                    asked = min(end - start, self.endpoint.per_request or job.wanted)
                    body = self._body(job, start, asked)
                    draws, model = await self._ask(client, pace, body, asked)
                    record([Reply(job.key, start, draws, model)])
                    start += len(draws)
            except _Rejected as problem:
                if self.succeeded:
                    record([Reply(job.key, start, rejected=str(problem))])
                else:  # more likely all requests have a problem, so the next run tries this one again
                    self._fail(end - start, str(problem))
            except _Failed as problem:
                self._fail(end - start, str(problem))

    def _fail(self, draws: int, why: str) -> None:
        self.report.unfinished += draws
        self.report.first_failure = self.report.first_failure or why
        self.failures += 1
        if self.failures >= GIVE_UP:
            raise EndpointError(
                f"{self.endpoint.shown}: {self.failures} requests in a row failed; the last: {why} What was drawn is "
                "kept: the same command goes on from there."
            )

    def _body(self, job: Job, start: int, asked: int) -> dict[str, Any]:
        settings = self.settings or SamplingSettings()
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

    async def _ask(
        self, client: httpx2.AsyncClient, pace: Pace, body: dict[str, Any], asked: int
    ) -> tuple[list[Any], str | None]:
        read: list[Any] = []

        def check(content: bytes) -> None:
            read[:] = read_reply(content, self.endpoint.api, asked)

        await self._send(client, pace, "POST", PATHS[self.endpoint.api], body, check)
        self.succeeded, self.failures = True, 0
        return read[0], read[1]

    async def _send(
        self,
        client: httpx2.AsyncClient,
        pace: Pace,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        check: Callable[[bytes], None] = lambda content: None,
    ) -> bytes:
        """Send a request, with retries, and return the content of a successful answer."""
        url = self.endpoint._base.copy_with(path=self.endpoint._base.path + path)
        for attempt in range(self.endpoint.retries + 1):
            await pace.turn()
            self.report.requests += 1
            self.report.retries += attempt > 0
            wait = None
            try:
                async with asyncio.timeout(self.endpoint.timeout):
                    response = await client.request(method, url, json=body)
                if response.is_success:
                    content = self._clean_bytes(response.content, at_least=LONG)
                    check(content)
                    return content
                why = f"HTTP {response.status_code}: {shown(self._clean_bytes(response.content))}"
                self._sort(response.status_code, why)
                wait = asked_wait(response.headers.get("Retry-After"))
                if wait is not None and response.status_code in (429, 503):
                    pace.hold(wait)
            except TimeoutError:
                why = f"no answer within {self.endpoint.timeout:g} s."
            except (httpx2.TransportError, httpx2.DecodingError) as problem:
                why = f"{type(problem).__name__}: {problem}."
            except Garbage as problem:
                begins = shown(self._clean_bytes(response.content))
                why = f"a reply that makes no sense: {problem}; it begins {begins}."
            if attempt < self.endpoint.retries:
                await asyncio.sleep(max(wait or 0.0, backoff(attempt, self.endpoint.backoff)))
        raise _Failed(self._clean(f"after {attempt + 1} tries: {why}"))

    def _sort(self, status: int, why: str) -> None:
        """Return for a temporary failure, and raise for any other."""
        if status >= 500 or status in TRY_AGAIN:
            return
        if status < 400 or status in MISTAKEN:
            hint = {401: "the API key is missing or wrong (api_key_env)", 403: "the API key may not do this"}
            what = hint.get(status, "check the address and the model's name")
            raise EndpointError(self._clean(f"{self.endpoint.shown}: {what}. {why}"))
        raise _Rejected(self._clean(why))

    def _clean(self, text: str) -> str:
        """Mask the secrets in a text, since some servers repeat the key in their errors."""
        return mask(text, self.endpoint._secrets)

    def _clean_bytes(self, body: bytes, at_least: int = 1) -> bytes:
        """Mask secrets of `at_least` characters in a complete body, before it is cut or parsed."""
        secrets = [secret for secret in self.endpoint._secrets if len(secret) >= at_least]
        return mask(body.decode("latin-1"), secrets).encode("latin-1") if secrets else body


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EndpointError(f"api_key_env={variable!r}: there is no such environment variable, or it is empty.")
    if not key.isascii() or not key.isprintable():
        raise EndpointError(f"api_key_env={variable!r}: what it holds cannot be a key.")
    return key


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, also inside a notebook, where an event loop is already running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _first_error(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_first_error, work).result()


def _first_error(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine, and raise the first error of an exception group, which is the cause."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
