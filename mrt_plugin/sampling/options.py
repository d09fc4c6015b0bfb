"""Define the options of sampling. The commands take them from these dataclasses."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from mrt_plugin.options import Api, PromptFormat, option


class _Checked:
    """Check every option against its bounds."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if "bounds" in item.metadata and isinstance(value, int | float):
                item.metadata["bounds"].check(item.name, value)


@dataclass(frozen=True)
class SamplingSettings(_Checked):
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
    max_tokens: int | None = 1024
    stop: tuple[str, ...] = ()
    seed: int = option(0, "Another seed gives other draws.", ge=0)
    logprobs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens!r} must be at least 1.")
        if not all(self.stop):
            raise ValueError("stop must hold no empty text.")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as stored with every response."""
        return {**asdict(self), "stop": list(self.stop)}


@dataclass(kw_only=True)
class EndpointOptions(_Checked):
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
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.api not in get_args(Api):
            raise ValueError(f"api={self.api!r} is unknown: choose one of {', '.join(get_args(Api))}.")
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ValueError(f"requests_per_minute={self.requests_per_minute!r} must be above 0.")


@dataclass(kw_only=True)
class LocalOptions(_Checked):
    """How a local model is loaded and asked."""

    load_in_4bit: bool = option(False, "Load a local model in 4 bit, as QLoRA trains it.")
    batch_size: int = option(32, "Responses that a local model draws at a time.", ge=1)
    prompt_format: PromptFormat = option("auto", "Local model: chat, plain, or auto (chat if it has a template).")
