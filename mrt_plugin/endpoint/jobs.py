"""Define the options of requests, from which the commands take theirs, and the jobs, draws, replies and counters."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.options import Api, check_values, option

WHOLE = set("stop eos eos_token stop_sequence end_turn complete tool_calls function_call tool_use".split())
"""The `finish_reason`s of OpenAI, vLLM, TGI, Anthropic and Cohere for an answer that the model ended itself."""


class Checked:
    """Options that are checked when they are made."""

    def __post_init__(self) -> None:
        check_values(self, type(self))


@dataclass(frozen=True)
class SamplingSettings(Checked):
    """Settings of the draws. The defaults draw from the model's own distribution, unchanged.

    `max_tokens` is the most tokens of one response; None leaves the limit to the endpoint. `stop` are texts that end a
    response and are not part of it. `logprobs` keeps the log-probability of each token.

    Raises:
        ValueError: names the setting that is out of bounds.

    Example:

    >>> SamplingSettings(max_tokens=512, stop=("###",)).temperature
    1.0
    """

    temperature: float = option(1.0, "1 is the model's own distribution. 0 takes the likeliest token.", ge=0, le=10)
    top_p: float = option(1.0, "Draw from the likeliest tokens that together reach this probability.", gt=0, le=1)
    max_tokens: int | None = option(1024, "Most tokens of one response.", ge=1)
    stop: tuple[str, ...] = ()
    seed: int = option(0, "Another seed gives other draws.", ge=0)
    logprobs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.stop):
            raise ValueError("stop must hold no empty text.")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as stored with every response."""
        return {**asdict(self), "stop": list(self.stop)}


@dataclass(kw_only=True)
class EndpointOptions(Checked):
    """How an endpoint is asked. `extra` has more fields of the request's body; one set to None is left out."""

    api: Api = option("chat", "chat: the server applies its chat template. completions: text is sent unchanged.")
    api_key_env: str | None = option(None, "Environment variable that holds the API key. The key is never written.")
    concurrency: int = option(16, "Requests at a time.", ge=1)
    per_request: int | None = option(
        None, "Responses per request; by default all that a prompt needs. 1 if the endpoint refuses more.", ge=1
    )
    retries: int = option(8, "Retries after a temporary failure. 8 take about two minutes.", ge=0)
    timeout: float = option(600.0, "The most seconds for one request.", gt=0)
    backoff: float = option(1.0, "Seconds before the first retry; doubled for each further retry.", gt=0)
    requests_per_minute: float | None = None
    max_requests: int | None = None
    """The most requests of one run, retries included."""
    extra: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Job:
    """A prompt (a string or messages), and the draws `wanted` for it, numbered from `first`, of which some exist."""

    id: str
    prompt: Any
    wanted: int
    first: int = 0
    others: bytes = b""
    """Hash of existing responses whose draws are unknown, so that those draws are not repeated."""
    have: int = 0

    @cached_property
    def key(self) -> str:
        """The key in the journal. A changed prompt has another key, so it never gets old responses."""
        others = [self.others] if self.others else []
        return digest(b"sample", self.id.encode(), canonical(self.prompt), *others, size=16).hex()


@dataclass
class Draw:
    """One drawn response. `logprobs` has each token's log-probability in nats, or None if it is not finite."""

    text: str
    finish_reason: str | None
    tokens: int | None = None
    logprobs: list[float | None] | None = None
    reasoning: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        known = {"tokens": self.tokens, "reasoning": self.reasoning, "logprobs": self.logprobs}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def ending(self) -> Literal["whole", "cut off", "unknown"]:
        """Whether the model ended the response itself, judged only by its `finish_reason`."""
        reason = self.finish_reason
        return "unknown" if reason is None else "whole" if reason.lower() in WHOLE else "cut off"


@dataclass
class Reply:
    """Draws of one prompt, numbered from `start`, or the reason why the prompt was rejected."""

    key: str
    start: int
    draws: list[Draw] = field(default_factory=list)
    model: str | None = None
    rejected: str | None = None


@dataclass
class SampleReport:
    """The counts of a run. The pool has `whole + cut_off + unknown` draws; an endpoint may not say why a draw ended.

    `reused` counts draws of earlier runs, `rejected` prompts, and `unfinished` failed draws.
    """

    prompts: int = 0
    wanted: int = 0
    whole: int = 0
    cut_off: int = 0
    unknown: int = 0
    reused: int = 0
    rejected: int = 0
    unfinished: int = 0
    requests: int = 0
    retries: int = 0
    repeated_prompts: int = 0
    first_rejection: str = ""
    first_failure: str = ""
    output: str = ""

    def count(self, draw: Draw) -> None:
        self.whole += draw.ending == "whole"
        self.cut_off += draw.ending == "cut off"
        self.unknown += draw.ending == "unknown"


@dataclass(frozen=True)
class SamplingTask:
    """What a sampler has to draw. It calls `record` with every reply before the next request."""

    jobs: Sequence[Job]
    settings: SamplingSettings
    record: Callable[[list[Reply]], None]
    report: SampleReport


def draw_seed(settings: SamplingSettings, key: str, start: int) -> int:
    """Return the seed of one request, in [0, 2^31), from the run's seed, the prompt and the first draw's number."""
    parts = (b"draw", str(settings.seed).encode(), key.encode(), str(start).encode())
    return int.from_bytes(digest(*parts), "little") % 2**31


class Unfinished(RuntimeError):
    """Some draws failed. The others are kept, and the same call continues from there."""
