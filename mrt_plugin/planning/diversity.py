"""What can be said about the data without a model: how diverse the prompts and the responses are.

None of this says how many responses to keep. Topic spread is not loss variance.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrt_plugin.groups.messages import message_text, response_text
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.selection.prepare import cosine_matrix

Tokenize = Callable[[str], Sequence[Any]]

CUT = 512
"""Tokens of a prompt that count, as in arXiv 2403.11124."""

NEAR = 0.9
"""Prompts whose nearest other has at least this cosine are called redundant."""

POWERS = tuple(round(0.05 * step, 2) for step in range(41))
"""The grid over p: 0, 0.05 ... 2."""


def words(text: str) -> list[str]:
    """Words and single signs: what counts as a token where no tokenizer is given.

    >>> words("What is 2 + 2?")
    ['What', 'is', '2', '+', '2', '?']
    """
    return re.findall(r"\w+|[^\w\s]", text)


def prompt_text(prompt: str | Sequence[dict[str, Any]]) -> str:
    """The text of a prompt; of messages, what each of them says."""
    return prompt if isinstance(prompt, str) else "\n".join(message_text(dict(message)) for message in prompt)


def ngrams(tokens: Sequence[Any], order: int) -> list[tuple[Any, ...]]:
    """The n-grams of a token sequence, in order, repeats included."""
    return [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]


@dataclass(frozen=True)
class PromptDiversity:
    """d = r · n^p of a prompt set (arXiv 2403.11124)."""

    d: float
    r: float
    """Distinct n-grams over all n-grams, both over the whole set."""
    prompts: int
    """n"""
    order: int
    """Tokens of an n-gram: 2 for the bigrams of the paper."""
    p: float
    distinct: int
    total: int


def prompt_diversity(
    prompts: Iterable[str], *, tokenize: Tokenize = words, order: int = 2, p: float = 0.5
) -> PromptDiversity:
    """Diversity of a prompt set: d = r · n^p, with r the share of its n-grams that are distinct.

    r alone falls as a set grows; n^p makes up for it. Compare d only between sets measured with one tokenizer, order
    and p.

    Args:
        prompts: texts.
        tokenize: text to tokens; with a model, its tokenizer. The first 512 tokens of a prompt count.
        order: tokens of an n-gram.
        p: the exponent; 0.5, or found by `fit_diversity`.

    Raises:
        ValueError: if no prompt has as many tokens as an n-gram.

    Example:

    >>> found = prompt_diversity(["Name a fruit.", "Name a tree."])
    >>> found.distinct, found.total, round(found.d, 3)
    (5, 6, 1.179)
    """
    distinct: set[tuple[Any, ...]] = set()
    count = total = 0
    for prompt in prompts:
        found = ngrams(tokenize(prompt)[:CUT], order)
        distinct.update(found)
        total += len(found)
        count += 1
    if not total:
        raise ValueError(f"None of {count} prompts has {order} tokens: there are no {order}-grams to count.")
    r = len(distinct) / total
    return PromptDiversity(r * count**p, r, count, order, p, len(distinct), total)


@dataclass(frozen=True)
class DiversityFit:
    """score = slope · r·n^p + intercept, over several training sets."""

    p: float
    slope: float
    intercept: float
    mse: float
    """Mean squared residual."""

    def predict(self, r: float, prompts: int) -> float:
        """The score expected of a prompt set."""
        return self.slope * r * prompts**self.p + self.intercept


def fit_diversity(
    sets: Sequence[PromptDiversity], scores: Sequence[float], *, powers: Sequence[float] = POWERS
) -> DiversityFit:
    """Fit a line of score on d over several prompt sets, with the p of a grid that leaves the least squared error.

    With three sets or fewer almost any p fits: treat the result as a description, not a law.

    Args:
        sets: at least 3, measured with one tokenizer and order.
        scores: what training on each reached, larger or smaller is better, as you like.
        powers: the grid; one value fixes p.

    Raises:
        ValueError: for fewer than 3 sets, or sets measured with different orders.
    """
    if len(sets) != len(scores) or len(sets) < 3:
        raise ValueError(f"{len(sets)} sets and {len(scores)} scores: a line needs at least 3 of each, one per set.")
    if len({item.order for item in sets}) > 1:
        raise ValueError("The sets were measured with n-grams of different orders: measure them alike.")
    target = np.asarray(scores, dtype=np.float64)
    fits = []
    for p in powers:
        d = np.array([item.r * item.prompts**p for item in sets])
        design = np.stack([d, np.ones_like(d)], axis=1)
        (slope, intercept), *_ = np.linalg.lstsq(design, target, rcond=None)
        mse = float(((target - design @ [slope, intercept]) ** 2).mean())
        fits.append(DiversityFit(float(p), float(slope), float(intercept), mse))
    return min(fits, key=lambda fit: fit.mse)


@dataclass(frozen=True)
class Redundancy:
    """How close the prompts of a set lie together. Near-duplicates already act as extra responses to one prompt."""

    nearest: float
    """Mean cosine of a prompt to its nearest other."""
    share: float
    """Share of prompts whose nearest other has a cosine of at least `near`."""
    near: float
    prompts: int


def prompt_redundancy(prompts: Sequence[str], embedder: Embedder, *, near: float = NEAR) -> Redundancy:
    """The nearest other prompt of each prompt, by cosine of embeddings. O(n²) products.

    Raises:
        ValueError: for fewer than 2 prompts.
    """
    if len(prompts) < 2:
        raise ValueError("Redundancy is a matter of at least 2 prompts.")
    vectors = embedder(list(prompts))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    nearest = np.empty(len(prompts))
    for start in range(0, len(prompts), 512):
        block = vectors[start : start + 512] @ vectors.T
        block[np.arange(len(block)), start + np.arange(len(block))] = -np.inf
        nearest[start : start + 512] = block.max(axis=1)
    return Redundancy(float(nearest.mean()), float((nearest >= near - 1e-9).mean()), near, len(prompts))


def response_diversity(responses: Sequence[Any], embedder: Embedder) -> float:
    """1 minus the mean cosine over pairs of a prompt's responses; NaN for fewer than 2 responses."""
    if len(responses) < 2:
        return float("nan")
    cosines = cosine_matrix([response_text(response) for response in responses], embedder)
    return float(1 - cosines[np.triu_indices(len(cosines), 1)].mean())


def effective_k(k: float, similarity: float) -> float:
    """k_eff = K/(1 + (K-1)·mean similarity): a heuristic for how many different responses K are worth.

    Similar embeddings are not equal losses: no best K follows from this.
    """
    return k / (1 + (k - 1) * max(similarity, 0.0))
