"""Sampled answers to held-out prompts during training: their coverage, alignment and diversity."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from mrt_plugin.endpoint.jobs import Draw, SamplingSettings, draw_seed
from mrt_plugin.groups.keys import digest
from mrt_plugin.layout.group_row import as_group_row, responses_of
from mrt_plugin.sampling.local import draw_after
from mrt_plugin.scoring.cosine import coverage, diversity

SEEN_ROWS, FEWEST_TOKENS = 2000, 32
"""Rows from which the prompts are chosen, and the least that `Sampler.max_tokens` is by default."""


@dataclass(frozen=True)
class PromptTokens:
    """A prompt's tokens as the model sees them, and the responses to it in the data."""

    tokens: tuple[int, ...]
    references: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> str:
        """Return the prompt's name, on which its draws depend."""
        return digest(b"prompt", np.asarray(self.tokens, dtype=np.int64).tobytes(), size=16).hex()


def pick_prompts(rows: Dataset, count: int) -> list[PromptTokens]:
    """Return some prompts of prepared rows, the same ones for any order of the rows, each with the first run of
    trained tokens of its responses."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for number in range(min(len(rows), SEEN_ROWS)):
        for sequence, *_ in responses_of(as_group_row(rows[number])):
            ids, trained = sequence.input_ids.tolist(), sequence.trained.tolist()
            if True not in trained:
                continue
            first = trained.index(True)
            stop = first + [*trained[first:], False].index(False)
            found.setdefault(tuple(ids[:first]), []).append(tuple(ids[first:stop]))
    prompts = [PromptTokens(tokens, tuple(references)) for tokens, references in found.items()]
    return sorted(prompts, key=lambda prompt: prompt.key)[:count]


@dataclass(frozen=True)
class Sampler:
    """Samples answers from a model in training, without changing how training continues."""

    tokenizer: PreTrainedTokenizerBase
    each: int
    max_tokens: int | None
    """By default twice the longest reference."""
    seed: int
    """The same at every evaluation, so that only the model differs."""

    def answer(self, model: Any, prompts: list[PromptTokens]) -> list[list[Draw]]:
        """Return the answers to each prompt. All of the model's weights must be in this process."""
        longest = max(len(reference) for prompt in prompts for reference in prompt.references)
        settings = SamplingSettings(max_tokens=self.max_tokens or max(FEWEST_TOKENS, 2 * longest), seed=self.seed)
        training = model.training
        model.eval()
        try:
            answers = []
            for prompt in prompts:
                seeds = [draw_seed(settings, prompt.key, number) for number in range(self.each)]
                answers.append(draw_after(model, self.tokenizer, [list(prompt.tokens)] * self.each, seeds, settings))
            return answers
        finally:
            model.train(training)


@dataclass(frozen=True)
class HeldOutSamples:
    """Metrics of answers to a few held-out prompts, logged at every evaluation."""

    sampler: Sampler
    embed: Callable[[list[str]], np.ndarray]
    prompts: int

    def metrics(self, model: Any, rows: Dataset, prefix: str) -> dict[str, float]:
        """Return means over the prompts, the mean tokens of an answer, and the share that ended by themselves."""
        prompts, decode, each = pick_prompts(rows, self.prompts), self.sampler.tokenizer.decode, self.sampler.each
        answers = self.sampler.answer(model, prompts)
        figures = []
        for prompt, draws in zip(prompts, answers, strict=True):
            references = [str(decode(list(ids), skip_special_tokens=True)) for ids in prompt.references]
            vectors = self.embed([draw.text for draw in draws] + references)
            sampled, wanted = vectors[:each], vectors[each:]
            figures.append((coverage(sampled, wanted), coverage(wanted, sampled), diversity(sampled)))
        all_draws = [draw for draws in answers for draw in draws]
        names = ("coverage", "alignment", "diversity")
        return {
            **{f"{prefix}_{name}": float(value) for name, value in zip(names, np.mean(figures, axis=0), strict=True)},
            f"{prefix}_sample_tokens": float(np.mean([draw.tokens for draw in all_draws])),
            f"{prefix}_samples_ended": float(np.mean([draw.ending == "whole" for draw in all_draws])),
        }
