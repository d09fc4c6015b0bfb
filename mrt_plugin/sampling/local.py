"""Draw responses from a local model, each with its own random numbers from (seed, prompt, number of the draw)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from mrt_plugin.encoding import Encoder
from mrt_plugin.endpoint.jobs import Draw, Reply, SamplingSettings, SamplingTask, draw_seed
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.paths import MODEL_FILES
from mrt_plugin.models.load import open_model
from mrt_plugin.models.log_likelihood import Model
from mrt_plugin.models.named_model import parse_models
from mrt_plugin.sampling.options import LocalOptions


@dataclass
class LocalModel(LocalOptions):
    """A causal language model on this machine.

    Args:
        path: folder or hub name of the model, with its tokenizer. Also `BASE+ADAPTER`, or an adapter's folder.
        adapter: folder of a PEFT adapter to apply to the model.
        dtype: dtype of the computation.
        device: by default the first GPU, else the CPU.
        tokenizer: folder or name. By default the adapter's own tokenizer if it has one, else the model's.
        loaded: the model with its encoder, if they are already in memory.

    The other arguments are the `LocalOptions`, by name.

    Example:

    ```python
    from mrt_plugin.sampling import LocalModel

    model = LocalModel("path/to/base", batch_size=16)
    ```
    """

    path: str | Path
    adapter: str | Path | None = None
    dtype: torch.dtype | None = None
    device: str | None = None
    tokenizer: str | Path | None = None
    loaded: tuple[Model, Encoder] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        adapter = None if self.adapter is None else str(self.adapter)
        (self._named,) = parse_models([str(self.path)], adapter=adapter)
        self.path, self.adapter = str(self._named.path), self._named.adapter

    def identity(self) -> dict[str, Any]:
        """Return what the draws depend on besides the settings. `files` changes when a local model is trained on."""
        found = [
            f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}"
            for folder in (self.path, self.adapter)
            if folder is not None and Path(folder).is_dir()
            for file in sorted(Path(folder).iterdir())
            if file.suffix in MODEL_FILES
        ]
        return {
            "model": self.path,
            "adapter": self.adapter,
            "load_in_4bit": self.load_in_4bit,
            "prompt_format": self.prompt_format,
            "tokenizer": None if self.tokenizer is None else str(self.tokenizer),
            "files": digest(b"files", *(line.encode() for line in found), size=16).hex(),
        }

    def load(self) -> tuple[Model, Encoder]:
        """Return the model and its encoder, which are loaded if necessary."""
        return self.loaded or open_model(
            self._named,
            tokenizer=self.tokenizer,
            prompt_format=self.prompt_format,
            load_in_4bit=self.load_in_4bit,
            dtype=self.dtype or (torch.bfloat16 if torch.cuda.is_available() else torch.float32),
            device=self.device,
        )

    def draw(self, task: SamplingTask) -> None:
        """Draw the missing responses in batches that are planned over all jobs, so that a resumed run has the same."""
        if task.settings.max_tokens is None:
            raise ValueError("max_tokens is needed for a local model: it ends a response that rambles on.")
        model, encoder = self.load()
        name = "+".join(str(part) for part in (self.path, self.adapter) if part is not None)
        plan = [(job, number) for job in task.jobs for number in range(job.first, job.first + job.wanted)]
        for start in range(0, len(plan), self.batch_size):
            planned = plan[start : start + self.batch_size]
            batch = [(job, number) for job, number in planned if number >= job.first + job.have]
            if not batch:
                continue
            task.report.requests += 1
            prompts = [encoder.encode_prompt(job.prompt) for job, _ in batch]
            seeds = [draw_seed(task.settings, job.key, number) for job, number in batch]
            with torch.inference_mode():
                draws = draw_after(model, encoder.tokenizer, prompts, seeds, task.settings)
            replies: list[Reply] = []  # one per prompt, whose draws are consecutive
            for (job, number), draw in zip(batch, draws, strict=True):
                if not replies or replies[-1].key != job.key:
                    replies.append(Reply(job.key, number, [], name))
                replies[-1].draws.append(draw)
            task.record(replies)


def draw_after(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    settings: SamplingSettings,
) -> list[Draw]:
    """Draw one response for each prompt of token ids and its seed, from a model in evaluation mode.

    Log-probabilities are the model's own, before temperature and top_p. `max_tokens` must be set.
    """
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    # Pad on the left, independent of the tokenizer's setting: generation continues from the last column.
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    picker = _Picker(settings, seeds)
    theirs = model.generation_config
    named = theirs.eos_token_id
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    # Disable what the model's own generation config would add, for example a repetition penalty or a top_k.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        pad_token_id=pad, eos_token_id=sorted(ends) or None, do_sample=False
    )
    try:
        with torch.no_grad():  # not inference_mode: training goes on with the same buffers
            output = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=settings.max_tokens,
                logits_processor=LogitsProcessorList([picker]),
                stop_strings=list(settings.stop) or None,
                tokenizer=tokenizer if settings.stop else None,
            )
    finally:
        model.generation_config = theirs
    draws = []
    for row, tokens in enumerate(output[:, width:].tolist()):
        length = next((index for index, token in enumerate(tokens) if token in ends), None)
        whole = length is not None
        said = tokens[:length]
        text = str(tokenizer.decode(said, skip_special_tokens=True))
        for stop in settings.stop:
            before, found, _ = text.partition(stop)
            text, whole = before, whole or bool(found)
        scored = picker.logprobs[: len(said) + (length is not None)]  # the end token too
        logprobs: list[float | None] = [float(step[row]) for step in scored]
        draws.append(Draw(text, "stop" if whole else "length", len(said), logprobs if settings.logprobs else None))
    return draws


class _Picker(LogitsProcessor):
    """Draw the next token of each row by inverse transform sampling, with a random number of that row's own."""

    def __init__(self, settings: SamplingSettings, seeds: Sequence[int]) -> None:
        self._settings = settings
        self._uniform = np.stack([np.random.default_rng(seed).random(settings.max_tokens or 0) for seed in seeds])
        self._step = 0
        self._warpers = LogitsProcessorList()
        if settings.temperature not in (0.0, 1.0):
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_p < 1:
            self._warpers.append(TopPLogitsWarper(settings.top_p))
        self.logprobs: list[torch.Tensor] = []  # for each step that of every row's token, [B], also after its end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        if self._settings.temperature == 0:
            picked = scores.argmax(dim=-1, keepdim=True)
        else:
            # float32 sums over a large vocabulary would lose the smallest probabilities. MPS supports only float32.
            exact = torch.float32 if scores.device.type == "mps" else torch.float64
            warped = self._warpers(input_ids, scores)  # type: ignore[arg-type]
            below = warped.to(exact).softmax(dim=-1).cumsum(dim=-1)
            uniform = torch.as_tensor(self._uniform[:, self._step, None], device=scores.device, dtype=exact)
            picked = torch.searchsorted(below, uniform * below[:, -1:], right=True)
        if self._settings.logprobs:
            self.logprobs.append(scores.log_softmax(dim=-1).gather(1, picked)[:, 0].cpu())
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, picked, 0.0)
