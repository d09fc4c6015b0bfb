"""Sampling requests, replies and counters."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from mrt_plugin.groups.keys import canonical, digest

Ending = Literal["whole", "cut off", "unknown"]

WHOLE = {
    "stop",
    "eos",
    "eos_token",
    "stop_sequence",
    "end_turn",
    "complete",
    "tool_calls",
    "function_call",
    "tool_use",
}
"""The `finish_reason`s of OpenAI, vLLM, TGI, Anthropic and Cohere for an answer that the model ended itself."""


@dataclass(frozen=True)
class SamplingSettings:
    """Sampling settings. The defaults draw from the model's own distribution, unchanged.

    Args:
        temperature: 1 leaves the distribution unchanged. 0 takes the likeliest token, so all draws are equal.
        top_p: draw from the smallest set of tokens whose total probability reaches this value.
        max_tokens: the most tokens of one response. None leaves the limit to the endpoint.
        stop: texts that end a response and are not part of it.
        seed: another seed gives other draws. Each request's own seed comes from this one, the prompt and the draw's
            number.
        logprobs: keep the log-probability of each token.

    Raises:
        ValueError: names the setting that is out of bounds.

    Example:

    >>> SamplingSettings(max_tokens=512, stop=("###",)).temperature
    1.0
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = 1024
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature={self.temperature!r} must be between 0 and 10.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p!r} must be above 0 and at most 1.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens!r} must be at least 1.")
        if not all(self.stop):
            raise ValueError("stop must hold no empty text.")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as stored with every response."""
        return {**asdict(self), "stop": list(self.stop)}


@dataclass(frozen=True)
class Job:
    """A prompt, and the number of responses to draw for it."""

    id: str
    prompt: Any
    """A string or a list of messages."""
    wanted: int
    first: int = 0
    """The number of the first draw. Lower numbers were drawn earlier for the pool that is extended."""
    others: bytes = b""
    """Hash of existing responses whose draws are unknown, so that those draws are not repeated."""

    @property
    def numbers(self) -> range:
        """The numbers of the requested draws."""
        return range(self.first, self.first + self.wanted)

    @cached_property
    def key(self) -> str:
        """The prompt's key in the journal. A changed prompt has another key, so it never gets old responses."""
        others = [self.others] if self.others else []
        return digest(b"sample", self.id.encode(), canonical(self.prompt), *others, size=16).hex()


@dataclass
class Draw:
    """One drawn response."""

    text: str
    finish_reason: str | None
    tokens: int | None = None
    logprobs: list[float | None] | None = None
    """The log-probability of each token, in nats. None for a token whose value is not finite."""
    reasoning: str | None = None
    """The reasoning of a reasoning model, if the endpoint separates it from the answer."""

    @property
    def ending(self) -> Ending:
        """Whether the model ended the response itself, judged only by its `finish_reason`."""
        if self.finish_reason is None:
            return "unknown"
        return "whole" if self.finish_reason.lower() in WHOLE else "cut off"


@dataclass
class Reply:
    """Some draws of one prompt, numbered from `start`, or the reason why the prompt was rejected."""

    key: str
    start: int
    draws: list[Draw] = field(default_factory=list)
    model: str | None = None
    """The model's name as the endpoint reports it."""
    rejected: str | None = None


@dataclass
class SampleReport:
    """The counts of a run. The pool has `whole + cut_off + unknown` draws. `reused` counts those from earlier runs."""

    prompts: int = 0
    wanted: int = 0
    whole: int = 0
    cut_off: int = 0
    unknown: int = 0
    """Draws for which the endpoint does not report why they ended."""
    reused: int = 0
    rejected: int = 0
    """Prompts that the endpoint rejected. They are not in the pool."""
    unfinished: int = 0
    """Draws that failed."""
    requests: int = 0
    retries: int = 0
    repeated_prompts: int = 0
    first_rejection: str = ""
    first_failure: str = ""
    output: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return all counts."""
        return asdict(self)


def draw_seed(settings: SamplingSettings, key: str, start: int) -> int:
    """Return the seed of one request, in [0, 2^31), from the run's seed, the prompt and the first draw's number."""
    parts: Sequence[bytes] = (b"draw", str(settings.seed).encode(), key.encode(), str(start).encode())
    return int.from_bytes(digest(*parts), "little") % 2**31
