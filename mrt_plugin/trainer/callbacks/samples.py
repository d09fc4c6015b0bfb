"""Answers to held-out prompts while a model trains, and what their coverage, alignment and diversity are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from mrt_plugin.groups.keys import digest
from mrt_plugin.layout.group_row import IGNORE, segment_starts
from mrt_plugin.sampling.local import draw_after
from mrt_plugin.sampling.settings import Draw, SamplingSettings, draw_seed
from mrt_plugin.scoring.cosine import alignment, coverage, diversity

SEEN_ROWS = 2000
"""Rows among which the prompts are chosen."""

FEWEST_TOKENS = 32
"""Of an answer, where its length is taken from the references."""


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as the model sees it, and the responses to it that the data has."""

    tokens: tuple[int, ...]
    references: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> str:
        """Names the prompt: its draws depend on this and the seed alone."""
        return digest(b"prompt", np.asarray(self.tokens, dtype=np.int64).tobytes(), size=16).hex()


def pick_prompts(rows: Dataset, count: int) -> list[PromptTokens]:
    """Some prompts of prepared rows: always the same, whatever the order of the rows.

    A prompt goes up to the first trained token; a reference is the first run of trained tokens (of a response with
    several assistant turns, its first). Parts of one group that was split are put together again; rows that train
    nothing are passed over.

    Args:
        rows: as `prepare_groups` makes them; the first 2,000 are looked at.
        count: how many prompts at most.
    """
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for row in rows.select(range(min(len(rows), SEEN_ROWS))):
        ids, labels = row["input_ids"], row["labels"]  # type: ignore[index]
        for start, length in zip(segment_starts(row), row["segment_lengths"], strict=True):  # type: ignore[index, arg-type]
            trained = [label != IGNORE for label in labels[start : start + length]]
            if True not in trained:
                continue
            first = start + trained.index(True)
            rest = trained[trained.index(True) :]
            stop = first + (rest.index(False) if False in rest else len(rest))
            prompt = (*ids[: row["prefix_length"]], *ids[start:first])  # type: ignore[index]
            found.setdefault(prompt, []).append(tuple(ids[first:stop]))
    prompts = [PromptTokens(tokens, tuple(references)) for tokens, references in found.items()]
    return sorted(prompts, key=lambda prompt: prompt.key)[:count]


def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[PromptTokens],
    *,
    each: int,
    max_tokens: int | None,
    seed: int,
) -> list[list[Draw]]:
    """Answers from a model that is being trained, which is left in the mode it was found in.

    Args:
        model: unwrapped, with its weights whole.
        tokenizer: with a pad token.
        prompts: what to answer; one prompt is a batch.
        each: answers per prompt.
        max_tokens: of one answer; by default twice the longest reference, and at least 32.
        seed: of the draws; no other random number is used, so training goes on as if nothing had been drawn.
    """
    if max_tokens is None:
        longest = max(len(reference) for prompt in prompts for reference in prompt.references)
        max_tokens = max(FEWEST_TOKENS, 2 * longest)
    settings = SamplingSettings(max_tokens=max_tokens, seed=seed)
    training = model.training
    model.eval()
    try:
        return [
            draw_after(
                model,
                tokenizer,
                [list(prompt.tokens)] * each,
                [draw_seed(settings, prompt.key, number) for number in range(each)],
                settings,
            )
            for prompt in prompts
        ]
    finally:
        model.train(training)


@dataclass
class HeldOutSamples:
    """What is logged of the answers to a few held-out prompts at every evaluation.

    Args:
        tokenizer: of the run.
        embed: n texts to an array [n, dim].
        prompts: how many are answered.
        each: answers per prompt, at least 2.
        max_tokens: of one answer; by default twice the longest reference, and at least 32.
        seed: of the draws: the same at every evaluation, so that only the model differs.

    Example:

    ```python
    samples = HeldOutSamples(tokenizer, load_embedder("lexical"), prompts=8, each=4)
    samples.metrics(model, trainer.eval_dataset, "eval")["eval_coverage"]
    ```
    """

    tokenizer: PreTrainedTokenizerBase
    embed: Callable[[list[str]], np.ndarray]
    prompts: int
    each: int
    max_tokens: int | None = None
    seed: int = 0

    def metrics(self, model: Any, rows: Dataset, prefix: str) -> dict[str, float]:
        """Means over the prompts of coverage, alignment and diversity; the mean length of the answers in tokens, and
        the share that ended by themselves."""
        prompts = pick_prompts(rows, self.prompts)
        answers = answer(model, self.tokenizer, prompts, each=self.each, max_tokens=self.max_tokens, seed=self.seed)
        figures = []
        for prompt, draws in zip(prompts, answers, strict=True):
            references = [str(self.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in prompt.references]
            vectors = self.embed([draw.text for draw in draws] + references)
            sampled, wanted = vectors[: self.each], vectors[self.each :]
            figures.append((coverage(sampled, wanted), alignment(sampled, wanted), diversity(sampled)))
        all_draws = [draw for draws in answers for draw in draws]
        names = ("coverage", "alignment", "diversity")
        return {
            **{f"{prefix}_{name}": float(value) for name, value in zip(names, np.mean(figures, axis=0), strict=True)},
            f"{prefix}_sample_tokens": float(np.mean([draw.tokens for draw in all_draws])),
            f"{prefix}_samples_ended": float(np.mean([draw.ending == "whole" for draw in all_draws])),
        }
