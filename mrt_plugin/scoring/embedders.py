"""Embedders: functions by name that convert texts to vectors."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from mrt_plugin.extension import is_extension, load_function
from mrt_plugin.scoring.cache import ScoreCache

SENTENCE_TRANSFORMERS_DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
"""The embedder of "Escaping the Mode Lottery" (arXiv 2606.00544)."""
LEXICAL_DIMENSION = 4096


@dataclass(frozen=True)
class Embedder:
    """A named function from n texts to an array [n, dim]. If it `forks`, several processes may run it at once."""

    name: str
    embed: Callable[[list[str]], Any]
    forks: bool
    prepare: Callable[[Iterable[list[str]]], None] | None = None
    """With a cache: compute the vectors of many texts in advance."""

    def threads(self) -> int | None:
        """Return the number of threads of its model; None for a function without a model."""
        if self.prepare is None:
            return None
        import torch

        return torch.get_num_threads()

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of some texts, float64 [n, dim]. Refuse other shapes and numbers that are not finite."""
        vectors = self.shaped(texts)
        self.check_finite(vectors, texts)
        return vectors.astype(np.float64, copy=False)

    def shaped(self, texts: list[str]) -> np.ndarray:
        vectors = np.asarray(self.embed(texts))
        if vectors.ndim != 2 or len(vectors) != len(texts):
            given = f"gave an array of shape {vectors.shape} for {len(texts)} texts"
            raise ValueError(f"The embedder {self.name} {given}: it must give [{len(texts)}, dim].")
        return vectors

    def check_finite(self, vectors: np.ndarray, texts: list[str]) -> None:
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            text = texts[int(np.argmin(finite))][:80]
            raise ValueError(f"The embedder {self.name} gave a vector that is not finite, for the text {text!r}.")


def load_embedder(embedder: str | Callable[[list[str]], Any], *, score_cache: str | Path | None = None) -> Embedder:
    """Return an embedder by name, or wrap a callable as an embedder.

    Args:
        embedder: `lexical`; `sentence-transformers` for all-MiniLM-L6-v2; the name or path of any
            sentence-transformers model; or a function from a list of n strings to an array [n, dim], or its name as
            `package.module:function` or `file.py:function`.
        score_cache: the directory of the cache of a model's vectors; by default $MRT_CACHE or ~/.cache/mrt-plugin.
            `lexical` and functions have no cache: `lexical` is faster than a disk, and a change in a function cannot
            be detected.

    Raises:
        CacheError: if the cache cannot be used.
        ImportError: if sentence-transformers is needed but not installed.
        ValueError: if there is no such model.

    Example:

    >>> load_embedder("lexical")(["four", "4", "four!"]).shape
    (3, 4096)
    """
    if callable(embedder):
        return Embedder(getattr(embedder, "__name__", type(embedder).__name__), embedder, forks=True)
    if is_extension(embedder):
        return Embedder(embedder, load_function(embedder), forks=True)
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
    # `prepare` puts all vectors into the cache, so the processes read them there and do not run the model.
    return Embedder(name, vectors, forks=True, prepare=vectors.prepare)


def lexical(texts: list[str]) -> np.ndarray:
    """Embed each text by log(1 + count) of its hashed 3- and 4-grams of characters: float32 [n, 4096], of length 1."""
    vocabulary: dict[str, int] = {}
    words: list[int] = []
    ends = [0]
    for text in texts:
        words += [vocabulary.setdefault(word, len(vocabulary)) for word in text.lower().split()]
        ends.append(len(words))
    if not vocabulary:
        return np.zeros((len(texts), LEXICAL_DIMENSION), dtype=np.float32)
    # No n-gram crosses the end of a word, so each distinct word is split into n-grams and hashed once.
    times = csr_matrix((np.ones(len(words), dtype=np.float32), words, ends), shape=(len(texts), len(vocabulary)))
    counts = times @ _vectorizer().transform(vocabulary)
    counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
    vectors: np.ndarray = counts.toarray()
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


@cache
def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(analyzer=_ngrams, n_features=LEXICAL_DIMENSION, norm=None, dtype=np.float32)


def _ngrams(word: str) -> list[str]:
    """Return the 3- and 4-grams of a word between two spaces, as scikit-learn's `char_wb` does."""
    word = f" {word} "
    return [word[start : start + size] for size in (3, 4) for start in range(len(word) - size + 1)]
