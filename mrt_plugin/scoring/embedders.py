"""Embedders: texts to vectors, by name."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from mrt_plugin.scoring.cache import ScoreCache

SENTENCE_TRANSFORMERS_DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
"""The embedder of "Escaping the Mode Lottery" (arXiv 2606.00544)."""

LEXICAL_DIMENSION = 4096


@dataclass(frozen=True)
class Embedder:
    """A named function from n texts to an array [n, dim].

    `forks` says whether it may run in several processes at once (`num_proc`).
    """

    name: str
    embed: Callable[[list[str]], Any]
    forks: bool
    prepare: Callable[[Iterable[list[str]]], None] | None = None
    """Computes the vectors of many texts ahead, given in lists, for an embedder that keeps them in a cache."""

    def threads(self) -> int | None:
        """The threads that its model runs in here; None where there is no model, but a function."""
        if self.prepare is None:
            return None
        import torch

        return torch.get_num_threads()

    def __call__(self, texts: list[str]) -> np.ndarray:
        """The vectors of some texts, as float64 [n, dim].

        Raises:
            ValueError: if the embedder gives another shape, or numbers that are not finite.
        """
        vectors = np.asarray(self.embed(texts))
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(
                f"The embedder {self.name} gave an array of shape {vectors.shape} for {len(texts)} texts: it must "
                f"give [{len(texts)}, dim]."
            )
        if not np.isfinite(vectors).all():
            worst = int(np.argmin(np.isfinite(vectors).all(axis=1)))
            raise ValueError(
                f"The embedder {self.name} gave a vector that is not finite, for the text {texts[worst][:80]!r}."
            )
        return vectors.astype(np.float64, copy=False)


def load_embedder(embedder: str | Callable[[list[str]], Any], *, score_cache: str | Path | None = None) -> Embedder:
    """An embedder by name, or a callable as an embedder.

    Args:
        embedder: `lexical`; `sentence-transformers` for all-MiniLM-L6-v2; the name or path of any
            sentence-transformers model; or a function from a list of n strings to an array [n, dim].
        score_cache: the directory in which a model's vectors are kept; by default $MRT_CACHE or ~/.cache/mrt-plugin.
            `lexical` is quicker than a disk, and what a function does cannot be known: they have no cache.

    Raises:
        CacheError: if the cache cannot be used.
        ImportError: if sentence-transformers is needed and not installed.
        ValueError: if there is no such model.

    Example:

    >>> load_embedder("lexical")(["four", "4", "four!"]).shape
    (3, 4096)
    """
    if callable(embedder):
        return Embedder(getattr(embedder, "__name__", type(embedder).__name__), embedder, forks=True)
    if embedder == "lexical":
        return Embedder("lexical", lexical, forks=True)
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ImportError(
            f"embedder={embedder!r} needs sentence-transformers: pip install 'mrt-plugin[embeddings]', or use "
            "embedder='lexical'."
        )
    from mrt_plugin.scoring.sentence_model import SentenceVectors

    name = SENTENCE_TRANSFORMERS_DEFAULT if embedder == "sentence-transformers" else embedder
    vectors = SentenceVectors(name, ScoreCache(score_cache))
    # Processes find all vectors in the cache, where `prepare` puts them: none of them runs the model.
    return Embedder(name, vectors, forks=True, prepare=vectors.prepare)


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """The rows at length 1, float64 [n, dim]; a row of zeros stays 0.

    Each row is divided by its largest number first: the square of 1e200 is infinite, and that of 1e-200 is 0.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    vectors = vectors / np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def lexical(texts: list[str]) -> np.ndarray:
    """Character n-grams, hashed: what a text is spelled like. Each vector depends on its own text alone.

    Counts of 3- and 4-grams inside words, damped by log(1 + count). On real pools the cosines of a prompt's responses
    rank like those of all-MiniLM-L6-v2 with a mean Spearman correlation of 0.6.

    Returns:
        float32 [n, 4096], rows of length 1.
    """
    vocabulary: dict[str, int] = {}
    words: list[int] = []
    ends = [0]
    for text in texts:
        words += [vocabulary.setdefault(word, len(vocabulary)) for word in text.lower().split()]
        ends.append(len(words))
    if not vocabulary:
        return np.zeros((len(texts), LEXICAL_DIMENSION), dtype=np.float32)
    # No n-gram crosses a word's end, so each distinct word is cut into n-grams and hashed once.
    times = csr_matrix((np.ones(len(words), dtype=np.float32), words, ends), shape=(len(texts), len(vocabulary)))
    counts = times @ _vectorizer().transform(vocabulary)
    counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
    vectors: np.ndarray = counts.toarray()
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


@cache
def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(analyzer=_ngrams, n_features=LEXICAL_DIMENSION, norm=None, dtype=np.float32)


def _ngrams(word: str) -> list[str]:
    """The 3- and 4-grams of a word between two spaces, as scikit-learn's `char_wb` cuts them."""
    word = f" {word} "
    return [word[start : start + size] for size in (3, 4) for start in range(len(word) - size + 1)]
