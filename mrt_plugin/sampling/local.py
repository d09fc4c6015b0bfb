"""Draw responses from a local Transformers model.

Each draw has its own random numbers, one per token, from (seed, prompt, number of the draw). So a draw depends neither
on the rest of its batch nor on earlier draws. For large pools an inference server is many times faster, but a local
model needs no server.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from mrt_plugin.encoding import Encoder
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.paths import MODEL_FILES
from mrt_plugin.models.load import open_model
from mrt_plugin.models.named_model import parse_models
from mrt_plugin.options import PromptFormat
from mrt_plugin.sampling.settings import Draw, Job, Reply, SampleReport, SamplingSettings, draw_seed

Model = PreTrainedModel | PeftModel


@dataclass
class LocalModel:
    """A causal language model on this machine.

    Args:
        path: folder or hub name of the model, with its tokenizer. Also `BASE+ADAPTER`, or an adapter's folder.
        adapter: folder of a PEFT adapter to apply to the model.
        load_in_4bit: load the model as QLoRA trains it.
        dtype: dtype of the computation.
        device: by default the first GPU, else the CPU.
        batch_size: responses drawn at a time.
        prompt_format: as in training: `chat`, `plain`, or `auto` (chat if the tokenizer has a chat template).
        tokenizer: folder or name. By default the adapter's own tokenizer if it has one, else the model's.
        loaded: the model with its encoder, if they are already in memory.

    Example:

    ```python
    from mrt_plugin.sampling import LocalModel

    model = LocalModel("path/to/base", batch_size=16)
    ```
    """

    path: str | Path
    adapter: str | Path | None = None
    load_in_4bit: bool = False
    dtype: torch.dtype | None = None
    device: str | None = None
    batch_size: int = 32
    prompt_format: PromptFormat = "auto"
    tokenizer: str | Path | None = None
    loaded: tuple[Model, Encoder] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r} is too small: it must be at least 1.")
        adapter = None if self.adapter is None else str(self.adapter)
        (self._named,) = parse_models([str(self.path)], adapter=adapter)
        self.path, self.adapter = str(self._named.path), self._named.adapter

    @property
    def name(self) -> str:
        """The model's name as stored with each draw."""
        return str(self.path) if self.adapter is None else f"{self.path}+{self.adapter}"

    def identity(self) -> dict[str, Any]:
        """Return what the draws depend on besides the settings."""
        return {
            "model": self.path,
            "adapter": self.adapter,
            "load_in_4bit": self.load_in_4bit,
            "prompt_format": self.prompt_format,
            "tokenizer": None if self.tokenizer is None else str(self.tokenizer),
            "files": _files(self.path, self.adapter),
        }

    def load(self) -> tuple[Model, Encoder]:
        """Load the model and its encoder.

        Raises:
            ValueError: if the adapter was trained on a model with other weight shapes.
        """
        if self.loaded is None:
            return open_model(
                self._named,
                tokenizer=self.tokenizer,
                prompt_format=self.prompt_format,
                load_in_4bit=self.load_in_4bit,
                dtype=self.dtype or (torch.bfloat16 if torch.cuda.is_available() else torch.float32),
                device=self.device,
            )
        return self.loaded

    def draw(
        self,
        jobs: Sequence[tuple[Job, int]],
        settings: SamplingSettings,
        record: Callable[[list[Reply]], None],
        report: SampleReport,
    ) -> None:
        """Draw the missing responses of each job, one batch at a time.

        The batches are planned over all jobs, including finished ones, and each is recorded as a unit. So a resumed
        run computes the same batches as an uninterrupted run, and rounding cannot make them differ.
        """
        if settings.max_tokens is None:
            raise ValueError("max_tokens is needed for a local model: nothing else ends a response that rambles on.")
        model, encoder = self.load()
        for batch in _batches(jobs, self.batch_size):
            report.requests += 1
            record(_replies(batch, generate(model, encoder, batch, settings), self.name))


def _files(*folders: str | Path | None) -> str:
    """Hash the names, sizes and times of a local model's files. Further training changes the hash.

    A hub model is identified only by its name.
    """
    found = [
        f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for folder in folders
        if folder is not None and Path(folder).is_dir()
        for path in sorted(Path(folder).iterdir())
        if path.suffix in MODEL_FILES
    ]
    return digest(b"files", *(line.encode() for line in found), size=16).hex()


def generate(
    model: Model, encoder: Encoder, batch: Sequence[tuple[Job, int]], settings: SamplingSettings
) -> list[Draw]:
    """Draw one response for each (prompt, number of the draw).

    Args:
        model: the model, in evaluation mode.
        encoder: an encoder with the model's tokenizer, which has a pad token.
        batch: the draws to make.
        settings: sampling settings with `max_tokens` set.

    Returns:
        The draws, in order. Log-probabilities are the model's own, before temperature and top_p.
    """
    prompts = [encoder.encode_prompt(job.prompt) for job, _ in batch]
    seeds = [draw_seed(settings, job.key, number) for job, number in batch]
    with torch.inference_mode():
        return draw_after(model, encoder.tokenizer, prompts, seeds, settings)


def draw_after(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    settings: SamplingSettings,
) -> list[Draw]:
    """Draw one response for each prompt, given as token ids. Computes no gradients.

    Args:
        model: the model, in evaluation mode.
        tokenizer: the model's tokenizer, with a pad token.
        prompts: the token ids of each prompt.
        seeds: one seed per prompt, the only source of randomness of its draw.
        settings: sampling settings with `max_tokens` set.

    Returns:
        The draws, in order, as `generate` returns them.
    """
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    # Pad on the left, independent of the tokenizer's setting: generation continues from the last column.
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    picker = _Picker(settings, seeds)
    ends = _end_tokens(model, tokenizer)
    with torch.no_grad(), _own_generation_config(model, pad, ends):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=settings.max_tokens,
            logits_processor=LogitsProcessorList([picker]),
            stop_strings=list(settings.stop) or None,
            tokenizer=tokenizer if settings.stop else None,
        )
    return [
        _draw(tokens, picker.logprobs(row), ends, tokenizer, settings)
        for row, tokens in enumerate(output[:, width:].tolist())
    ]


class _Picker(LogitsProcessor):
    """Draw the next token of each row by inverse transform sampling, with a random number of that row's own."""

    def __init__(self, settings: SamplingSettings, seeds: Sequence[int]) -> None:
        steps = settings.max_tokens or 0
        self._uniform = np.stack([np.random.default_rng(seed).random(steps) for seed in seeds])
        self._step = 0
        self._temperature = settings.temperature
        self._warpers = LogitsProcessorList()
        if settings.temperature not in (0.0, 1.0):
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_p < 1:
            self._warpers.append(TopPLogitsWarper(settings.top_p))
        self._logprobs: list[torch.Tensor] | None = [] if settings.logprobs else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        if self._temperature == 0:
            picked = scores.argmax(dim=-1, keepdim=True)
        else:
            # float32 sums over a large vocabulary would lose the smallest probabilities. MPS supports only float32.
            exact = torch.float32 if scores.device.type == "mps" else torch.float64
            warped = self._warpers(input_ids, scores)  # type: ignore[arg-type]
            below = warped.to(exact).softmax(dim=-1).cumsum(dim=-1)
            uniform = torch.as_tensor(self._uniform[:, self._step, None], device=scores.device, dtype=exact)
            picked = torch.searchsorted(below, uniform * below[:, -1:], right=True)
        if self._logprobs is not None:
            self._logprobs.append(scores.log_softmax(dim=-1).gather(1, picked)[:, 0].cpu())
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, picked, 0.0)

    def logprobs(self, row: int) -> list[float] | None:
        """Return the log-probability of every token drawn for a row, including those after its end."""
        return None if self._logprobs is None else [float(step[row]) for step in self._logprobs]


@contextmanager
def _own_generation_config(model: Model, pad: int, ends: set[int]) -> Iterator[None]:
    """Disable what the model's own generation config would add, for example a repetition penalty or a top_k."""
    theirs = model.generation_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        pad_token_id=pad, eos_token_id=sorted(ends) or None, do_sample=False
    )
    try:
        yield
    finally:
        model.generation_config = theirs


def _end_tokens(model: Model, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end a turn: those of the model's generation config, and the tokenizer's EOS."""
    named = model.generation_config.eos_token_id
    ends = set(named if isinstance(named, list) else [] if named is None else [named])
    return ends if tokenizer.eos_token_id is None else ends | {tokenizer.eos_token_id}


def _draw(
    tokens: list[int],
    logprobs: list[float] | None,
    ends: set[int],
    tokenizer: PreTrainedTokenizerBase,
    settings: SamplingSettings,
) -> Draw:
    length = next((index for index, token in enumerate(tokens) if token in ends), None)
    whole = length is not None
    said = tokens[:length]
    text = str(tokenizer.decode(said, skip_special_tokens=True))
    for stop in settings.stop:
        place = text.find(stop)
        if place >= 0:
            text, whole = text[:place], True
    kept = None if logprobs is None else logprobs[: len(said) + (length is not None)]  # the end is also a token
    return Draw(text, "stop" if whole else "length", len(said), None if kept is None else list(kept))


def _batches(jobs: Sequence[tuple[Job, int]], size: int) -> Iterator[list[tuple[Job, int]]]:
    """Yield the missing draws in batches. Which draws are missing does not change the batches' limits."""
    plan = [(job, number, number >= job.first + have) for job, have in jobs for number in job.numbers]
    for start in range(0, len(plan), size):
        batch = [(job, number) for job, number, missing in plan[start : start + size] if missing]
        if batch:
            yield batch


def _replies(batch: Sequence[tuple[Job, int]], draws: Sequence[Draw], model: str) -> list[Reply]:
    """Return one reply per prompt in a batch. The draws of a prompt are consecutive."""
    replies: list[Reply] = []
    for (job, number), draw in zip(batch, draws, strict=True):
        if not replies or replies[-1].key != job.key:
            replies.append(Reply(job.key, number, [], model))
        replies[-1].draws.append(draw)
    return replies
