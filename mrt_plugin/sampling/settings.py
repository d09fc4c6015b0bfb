"""What is asked for, what comes back, and what a run counts."""

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
"""The `finish_reason`s of OpenAI, vLLM, TGI, Anthropic, Cohere for an answer that its model ended."""


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are drawn. The defaults draw from the model's own distribution, unsharpened.

    Args:
        temperature: 1 leaves the distribution as it is; 0 takes the likeliest token, and makes all draws alike.
        top_p: draw from the smallest set of tokens whose probabilities reach it.
        max_tokens: of one response; None leaves it to the endpoint.
        stop: texts that end a response, and are not part of it.
        seed: another seed, other draws. Each request has its own, from this, the prompt and the draw's number.
        logprobs: keep the log-probability of each token.

    Raises:
        ValueError: naming the setting that is out of its bounds.
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
        """The settings as they are kept with every response."""
        return {**asdict(self), "stop": list(self.stop)}


@dataclass(frozen=True)
class Job:
    """A prompt, and how many responses are wanted of it."""

    id: str
    prompt: Any
    """A string, or a list of messages."""
    wanted: int
    first: int = 0
    """The number of the first draw: earlier ones were made before, for the pool that is filled up."""
    others: bytes = b""
    """Names the responses there are whose draws are not known, so that no draw behind them is made again."""

    @property
    def numbers(self) -> range:
        """The numbers of the draws that are wanted."""
        return range(self.first, self.first + self.wanted)

    @cached_property
    def key(self) -> str:
        """Names the prompt in the journal, so that a changed prompt never gets the old one's responses."""
        others = [self.others] if self.others else []
        return digest(b"sample", self.id.encode(), canonical(self.prompt), *others, size=16).hex()


@dataclass
class Draw:
    """One response as it was drawn."""

    text: str
    finish_reason: str | None
    tokens: int | None = None
    logprobs: list[float | None] | None = None
    """Of each token, in nats; None for a token whose value is not finite."""
    reasoning: str | None = None
    """What a reasoning model thought, where the endpoint tells it apart from the answer."""

    @property
    def ending(self) -> Ending:
        """Whether the model ended the response, by its `finish_reason`: nothing else is trusted."""
        if self.finish_reason is None:
            return "unknown"
        return "whole" if self.finish_reason.lower() in WHOLE else "cut off"


@dataclass
class Reply:
    """Some draws of one prompt, numbered from `start`; or why the prompt was turned away."""

    key: str
    start: int
    draws: list[Draw] = field(default_factory=list)
    model: str | None = None
    """The model's name as the endpoint reports it."""
    rejected: str | None = None


@dataclass
class SampleReport:
    """What a run did. `whole + cut_off + unknown` is the number of draws in the pool; `reused` of them are older."""

    prompts: int = 0
    wanted: int = 0
    whole: int = 0
    cut_off: int = 0
    unknown: int = 0
    """Draws whose endpoint does not say why they ended."""
    reused: int = 0
    rejected: int = 0
    """Prompts that the endpoint turned away, and left out of the pool."""
    unfinished: int = 0
    """Draws that could not be had."""
    requests: int = 0
    retries: int = 0
    repeated_prompts: int = 0
    first_rejection: str = ""
    first_failure: str = ""
    output: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All counts."""
        return asdict(self)


def draw_seed(settings: SamplingSettings, key: str, start: int) -> int:
    """The seed of one request, in [0, 2^31): from the run's seed, the prompt and the number of the first draw."""
    parts: Sequence[bytes] = (b"draw", str(settings.seed).encode(), key.encode(), str(start).encode())
    return int.from_bytes(digest(*parts), "little") % 2**31
