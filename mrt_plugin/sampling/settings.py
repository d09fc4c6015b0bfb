"""What sampling passes on: jobs, draws, replies and counters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.sampling.options import SamplingSettings

WHOLE = set("stop eos eos_token stop_sequence end_turn complete tool_calls function_call tool_use".split())
"""The `finish_reason`s of OpenAI, vLLM, TGI, Anthropic and Cohere for an answer that the model ended itself."""


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
        """The prompt's key in the journal. A changed prompt has another key, so it never gets old responses."""
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
        """What is known about the draw besides its text and end."""
        known = {"tokens": self.tokens, "reasoning": self.reasoning, "logprobs": self.logprobs}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def ending(self) -> Literal["whole", "cut off", "unknown"]:
        """Whether the model ended the response itself, judged only by its `finish_reason`."""
        reason = self.finish_reason
        return "unknown" if reason is None else "whole" if reason.lower() in WHOLE else "cut off"


@dataclass
class Reply:
    """Some draws of one prompt, numbered from `start`, or the reason why the prompt was rejected."""

    key: str
    start: int
    draws: list[Draw] = field(default_factory=list)
    model: str | None = None
    rejected: str | None = None


@dataclass
class SampleReport:
    """The counts of a run. The pool has `whole + cut_off + unknown` draws. `reused` counts those from earlier runs.

    It is `unknown` why a draw ended if the endpoint does not say. `rejected` counts prompts, and `unfinished` failed
    draws.
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
        """Count a draw of the pool."""
        self.whole += draw.ending == "whole"
        self.cut_off += draw.ending == "cut off"
        self.unknown += draw.ending == "unknown"


@dataclass(frozen=True)
class SamplingTask:
    """What a sampler has to draw. It calls `record` with every reply before it sends the next request."""

    jobs: Sequence[Job]
    settings: SamplingSettings
    record: Callable[[list[Reply]], None]
    report: SampleReport


class Sampler(Protocol):
    """Anything that draws responses: an `Endpoint` or a `LocalModel`."""

    def identity(self) -> dict[str, Any]:
        """Return what the draws depend on besides the settings."""

    def draw(self, task: SamplingTask) -> None:
        """Draw the missing responses of each job, and record every reply."""


def draw_seed(settings: SamplingSettings, key: str, start: int) -> int:
    """Return the seed of one request, in [0, 2^31), from the run's seed, the prompt and the first draw's number."""
    parts = (b"draw", str(settings.seed).encode(), key.encode(), str(start).encode())
    return int.from_bytes(digest(*parts), "little") % 2**31
