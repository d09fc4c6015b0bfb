"""Measure the diversity of prompts and responses without a model.

These measures do not say how many responses to keep. Topic spread is not loss variance.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrt_plugin.groups.messages import response_text
from mrt_plugin.scoring.cosine import cosine_matrix, mean_distance, nearest_cosines
from mrt_plugin.scoring.embedders import Embedder

Tokenize = Callable[[str], Sequence[Any]]

CUT = 512
"""Number of tokens counted per prompt, as in arXiv 2403.11124."""

NEAR = 0.9
"""A prompt is redundant if its nearest other prompt has at least this cosine."""

POWERS = tuple(round(0.05 * step, 2) for step in range(41))


def words(text: str) -> list[str]:
    """Split a text into words and single punctuation signs: the tokens used when no tokenizer is given."""
    return re.findall(r"\w+|[^\w\s]", text)


def token_ids(tokenizer: Any) -> Tokenize:
    """Return a function from a text to its token ids, without special tokens."""
    return lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def ngrams(tokens: Sequence[Any], order: int) -> list[tuple[Any, ...]]:
    """Return the n-grams of a prompt's first 512 tokens, in order and with repeats."""
    return list(zip(*(tokens[start:CUT] for start in range(order)), strict=False))


@dataclass(frozen=True)
class PromptDiversity:
    """Diversity of a prompt set, d = r · n^p (arXiv 2403.11124)."""

    d: float
    r: float
    """Number of distinct n-grams divided by the number of all n-grams, both over all prompts."""
    prompts: int
    order: int
    """Tokens per n-gram: 2 for the bigrams of the paper."""
    p: float
    distinct: int
    total: int


def prompt_diversity(
    prompts: Iterable[str], *, tokenize: Tokenize = words, order: int = 2, p: float = 0.5
) -> PromptDiversity:
    """Measure d = r · n^p of n prompts. Compare d only between sets with the same tokenizer, order and p."""
    found = [ngrams(tokenize(prompt), order) for prompt in prompts]
    distinct, total = len({gram for grams in found for gram in grams}), sum(map(len, found))
    if not total:
        raise ValueError(f"None of {len(found)} prompts has {order} tokens: there are no {order}-grams to count.")
    r = distinct / total
    return PromptDiversity(r * len(found) ** p, r, len(found), order, p, distinct, total)


@dataclass(frozen=True)
class DiversityFit:
    """Line score = slope · r·n^p + intercept, fitted over several training sets."""

    p: float
    slope: float
    intercept: float
    mse: float


def fit_diversity(
    sets: Sequence[PromptDiversity], scores: Sequence[float], *, powers: Sequence[float] = POWERS
) -> DiversityFit:
    """Fit a line of score on d over several prompt sets, with the p in `powers` of least squared error."""
    if len(sets) != len(scores) or len(sets) < 3:
        raise ValueError(f"{len(sets)} sets and {len(scores)} scores: a line needs at least 3 of each, one per set.")
    if len({item.order for item in sets}) > 1:
        raise ValueError("The sets were measured with n-grams of different orders: measure them in the same way.")
    fits = []
    for p in powers:
        d = np.array([item.r * item.prompts**p for item in sets])
        design = np.stack([d, np.ones_like(d)], axis=1)
        (slope, intercept), *_ = np.linalg.lstsq(design, np.asarray(scores), rcond=None)
        mse = np.mean((slope * d + intercept - scores) ** 2)
        fits.append(DiversityFit(float(p), float(slope), float(intercept), float(mse)))
    return min(fits, key=lambda fit: fit.mse)


@dataclass(frozen=True)
class Redundancy:
    """Similarity among prompts. Near-duplicate prompts already act like extra responses to one prompt."""

    nearest: float
    """Mean cosine between a prompt and its nearest other prompt."""
    share: float
    """Share of prompts whose nearest other prompt has a cosine of at least `near`."""
    near: float
    prompts: int


def prompt_redundancy(prompts: Sequence[str], embedder: Embedder) -> Redundancy:
    """Measure how close each of at least 2 prompts is to its nearest other prompt. Computes O(n²) products."""
    nearest = nearest_cosines(embedder(list(prompts)))
    return Redundancy(float(nearest.mean()), float((nearest >= NEAR - 1e-9).mean()), NEAR, len(prompts))


def response_diversity(responses: Sequence[Any], embedder: Embedder) -> float:
    """Return 1 minus the mean cosine over pairs of one prompt's responses; NaN for fewer than 2 responses."""
    return mean_distance(cosine_matrix([response_text(response) for response in responses], embedder))


def effective_k(k: float, similarity: float) -> float:
    """Return k_eff = K/(1 + (K-1)·mean similarity), a heuristic: similar embeddings do not imply equal losses."""
    return k / (1 + (k - 1) * max(similarity, 0.0))
