"""Drawing responses from an OpenAI-compatible endpoint: many requests at a time, each tried until it succeeds."""

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
"""Requests in a row that fail for good before a run stops: the server is down, or the request is wrong for it."""

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
PATHS: dict[Api, str] = {"chat": "/chat/completions", "completions": "/completions"}
TRY_AGAIN = {408, 409, 425, 429}
"""Besides all of 5xx."""
MISTAKEN = {401, 403, 404, 405, 410}
"""The address, the key or the model's name is wrong: no other request will do better."""


class EndpointError(RuntimeError):
    """The endpoint cannot be used as it is; the message says why and what to do."""


class _Failed(Exception):
    """A request failed though it was tried again and again."""


class _Rejected(Exception):
    """The endpoint will not answer this prompt."""


@dataclass
class Endpoint:
    """An OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, TGI, Ollama, or a hosted one.

    Args:
        url: up to `/v1`, or of the chat or text completions themselves.
        model: the name the endpoint knows the model by; may be left out where it serves only one.
        api: `chat` sends messages and lets the server apply the chat template; `completions` sends text as it is.
        api_key_env: the environment variable that holds the API key. The key is sent and never written down.
        concurrency: requests under way at a time.
        requests_per_minute: no more are started than this; None for no limit.
        per_request: responses asked for in one request (`n`); by default all that a prompt still needs. 1 for
            endpoints that refuse more.
        retries: how often a request that failed in passing is tried again; 8 last some two minutes.
        timeout: seconds that one request may take.
        backoff: seconds before the first retry; doubled for each further one.
        extra: more fields of the request's body; a field set to None is left out of it.

    Raises:
        EndpointError: for a malformed address, or if `api_key_env` names no variable.
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
        """What the draws depend on, besides the settings. Finds out the model's name if none was given.

        Raises:
            EndpointError: if the model cannot be found out.
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
        """Draw what is missing of each job.

        Args:
            jobs: with the number of draws each has already.
            settings: of the draws.
            record: called with every reply, before anything else is asked for in its place.
            report: counts requests, retries and draws that could not be had.

        Raises:
            EndpointError: if the endpoint cannot be used as it is, or stopped answering.
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
    """In a row."""

    async def draw_all(self, jobs: Sequence[tuple[Job, int]], record: Callable[[list[Reply]], None]) -> None:
        todo = iter([(job, have) for job, have in jobs if have < job.wanted])
        self.succeeded = any(have for _, have in jobs)
        pace = Pace(self.endpoint.requests_per_minute)
        with masked_log("httpx2", self.endpoint._secrets):
            async with self._client() as client, asyncio.TaskGroup() as workers:
                for _ in range(self.endpoint.concurrency):
                    workers.create_task(self._work(todo, client, pace, record))

    async def only_model(self) -> str:
        """The name of the model that the endpoint serves."""
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
            trust_env=endpoint._base.host not in LOOPBACK,  # a proxy cannot reach this machine's own servers
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
                else:  # more likely something is wrong with all requests: the next run shall try again
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
        """The content of a good answer, after as many tries as it takes."""
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
        """Let a passing failure pass, and raise for the others."""
        if status >= 500 or status in TRY_AGAIN:
            return
        if status < 400 or status in MISTAKEN:
            hint = {401: "the API key is missing or wrong (api_key_env)", 403: "the API key may not do this"}
            what = hint.get(status, "check the address and the model's name")
            raise EndpointError(self._clean(f"{self.endpoint.shown}: {what}. {why}"))
        raise _Rejected(self._clean(why))

    def _clean(self, text: str) -> str:
        """Without the key, which some servers repeat in their errors."""
        return mask(text, self.endpoint._secrets)

    def _clean_bytes(self, body: bytes, at_least: int = 1) -> bytes:
        """The same for a whole body, before any of it is cut off or parsed: for secrets of so many characters."""
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
    """Run to the end, also from inside a notebook, where a loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _first_error(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_first_error, work).result()


def _first_error(work: Coroutine[Any, Any, Any]) -> Any:
    """What a group of tasks raises is a group of errors; the first of them is what happened."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
