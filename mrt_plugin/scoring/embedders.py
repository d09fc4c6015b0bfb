"""Embedders: texts to vectors, by name."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

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

    def __call__(self, texts: list[str]) -> np.ndarray:
        """The vectors of some texts, as float64 [n, dim].

        Raises:
            ValueError: if the embedder gives another shape, or numbers that are not finite.
        """
        vectors = np.asarray(self.embed(texts), dtype=np.float64)
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
        return vectors


def load_embedder(embedder: str | Callable[[list[str]], Any]) -> Embedder:
    """An embedder by name, or a callable as an embedder.

    Args:
        embedder: `lexical`; `sentence-transformers` for all-MiniLM-L6-v2; the name or path of any
            sentence-transformers model; or a function from a list of n strings to an array [n, dim].

    Raises:
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
    name = SENTENCE_TRANSFORMERS_DEFAULT if embedder == "sentence-transformers" else embedder
    # Torch already uses all cores, and a process forked after it has started threads may hang.
    return Embedder(name, partial(_encode, _sentence_transformer(name)), forks=False)


def lexical(texts: list[str]) -> np.ndarray:
    """Character n-grams, hashed: what a text is spelled like. Each vector depends on its own text alone.

    Counts of 3- and 4-grams inside words, damped by log(1 + count). On real pools the cosines of a prompt's responses
    rank like those of all-MiniLM-L6-v2 with a mean Spearman correlation of 0.6.

    Returns:
        float32 [n, 4096], rows of length 1.
    """
    counts = _vectorizer().transform(texts)
    counts.data = np.sign(counts.data) * np.log1p(np.abs(counts.data))
    vectors: np.ndarray = counts.toarray()
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


@cache
def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 4), n_features=LEXICAL_DIMENSION, norm=None, dtype=np.float32
    )


@cache
def _sentence_transformer(name: str) -> Any:
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ImportError(
            f"embedder={name!r} needs sentence-transformers: pip install 'mrt-plugin[embeddings]', or use "
            "embedder='lexical'."
        )
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(name)
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"embedder={name!r} is not `lexical`, and could not be loaded as a sentence-transformers model: {problem}"
        ) from problem


def _encode(model: Any, texts: list[str]) -> Any:
    return model.encode(texts, convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False)
