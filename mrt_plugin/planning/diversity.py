"""Measure the diversity of prompts and responses without a model.

These measures do not say how many responses to keep. Topic spread is not loss variance.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrt_plugin.groups.messages import response_text
from mrt_plugin.scoring.cosine import cosine_matrix, unit_vectors
from mrt_plugin.scoring.embedders import Embedder

Tokenize = Callable[[str], Sequence[Any]]

CUT = 512
"""Number of tokens counted per prompt, as in arXiv 2403.11124."""

NEAR = 0.9
"""A prompt is redundant if its nearest other prompt has at least this cosine."""

POWERS = tuple(round(0.05 * step, 2) for step in range(41))
"""Values tried for the exponent p: 0, 0.05 ... 2."""


def words(text: str) -> list[str]:
    """Split a text into words and single punctuation signs: the tokens used when no tokenizer is given.

    >>> words("What is 2 + 2?")
    ['What', 'is', '2', '+', '2', '?']
    """
    return re.findall(r"\w+|[^\w\s]", text)


def token_ids(tokenizer: Any) -> Tokenize:
    """Return a function from a text to its token ids, without special tokens."""

    def tokenize(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    return tokenize


def ngrams(tokens: Sequence[Any], order: int) -> list[tuple[Any, ...]]:
    """Return the n-grams of a token sequence, in order and with repeats."""
    return [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]


@dataclass(frozen=True)
class PromptDiversity:
    """Diversity of a prompt set, d = r · n^p (arXiv 2403.11124)."""

    d: float
    r: float
    """Number of distinct n-grams divided by the number of all n-grams, both over all prompts."""
    prompts: int
    """n, the number of prompts."""
    order: int
    """Tokens per n-gram: 2 for the bigrams of the paper."""
    p: float
    distinct: int
    total: int


def prompt_diversity(
    prompts: Iterable[str], *, tokenize: Tokenize = words, order: int = 2, p: float = 0.5
) -> PromptDiversity:
    """Measure the diversity d = r · n^p of n prompts, with r the share of their n-grams that are distinct.

    r alone falls as a set grows; the factor n^p corrects for this. Compare d only between sets measured with the same
    tokenizer, order and p.

    Args:
        prompts: texts.
        tokenize: function from a text to its tokens; with a model, use its tokenizer. The first 512 tokens of a
            prompt count.
        order: tokens per n-gram.
        p: the exponent; 0.5, or the value fitted by `fit_diversity`.

    Raises:
        ValueError: if every prompt has fewer tokens than an n-gram.

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
    """Line score = slope · r·n^p + intercept, fitted over several training sets."""

    p: float
    slope: float
    intercept: float
    mse: float
    """Mean squared residual."""

    def predict(self, r: float, prompts: int) -> float:
        """Return the score that the line predicts for a prompt set."""
        return self.slope * r * prompts**self.p + self.intercept


def fit_diversity(
    sets: Sequence[PromptDiversity], scores: Sequence[float], *, powers: Sequence[float] = POWERS
) -> DiversityFit:
    """Fit a line of score on d over several prompt sets.

    The exponent p is the value in `powers` with the smallest squared error. With only three sets almost any p fits:
    treat the result as a description of these sets, not as a law.

    Args:
        sets: at least 3, measured with the same tokenizer and order.
        scores: one score per set after training on it. Either direction may be better.
        powers: values of p to try; a single value fixes p.

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
    """Similarity among the prompts of a set.

    Near-duplicate prompts already act like extra responses to one prompt.
    """

    nearest: float
    """Mean cosine between a prompt and its nearest other prompt."""
    share: float
    """Share of prompts whose nearest other prompt has a cosine of at least `near`."""
    near: float
    prompts: int


def prompt_redundancy(prompts: Sequence[str], embedder: Embedder, *, near: float = NEAR) -> Redundancy:
    """Measure how close each prompt is to its nearest other prompt, by cosine of embeddings. Computes O(n²) products.

    Raises:
        ValueError: for fewer than 2 prompts.
    """
    if len(prompts) < 2:
        raise ValueError("Redundancy is a matter of at least 2 prompts.")
    vectors = unit_vectors(embedder(list(prompts)))
    nearest = np.empty(len(prompts))
    for start in range(0, len(prompts), 512):
        block = vectors[start : start + 512] @ vectors.T
        block[np.arange(len(block)), start + np.arange(len(block))] = -np.inf
        nearest[start : start + 512] = block.max(axis=1)
    return Redundancy(float(nearest.mean()), float((nearest >= near - 1e-9).mean()), near, len(prompts))


def response_diversity(responses: Sequence[Any], embedder: Embedder) -> float:
    """Return 1 minus the mean cosine over pairs of one prompt's responses; NaN for fewer than 2 responses."""
    if len(responses) < 2:
        return float("nan")
    cosines = cosine_matrix([response_text(response) for response in responses], embedder)
    return float(1 - cosines[np.triu_indices(len(cosines), 1)].mean())


def effective_k(k: float, similarity: float) -> float:
    """Return k_eff = K/(1 + (K-1)·mean similarity).

    This is a heuristic: K similar responses count as k_eff different ones. Similar embeddings do not imply equal
    losses, so no best K follows from it.
    """
    return k / (1 + (k - 1) * max(similarity, 0.0))
