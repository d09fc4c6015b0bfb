"""Cosines of embeddings, and the measures computed from them."""

from collections.abc import Iterator, Sequence

import numpy as np

from mrt_plugin.scoring.embedders import Embedder

HUGE = 1e200
"""Vectors with squared lengths between 1e-200 and 1e200 are not rescaled before they are multiplied."""
CELLS = 2**15
"""Number of cosines computed at a time: 256 KiB of float64, which stay in a core's cache."""


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Scale the rows to length 1 and return them as float64 [n, dim]. A row of zeros stays 0."""
    vectors = np.asarray(vectors, dtype=np.float64)
    # First by the largest absolute value: the square of 1e200 is infinite, that of 1e-200 is 0.
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    vectors = vectors / np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def cosine_matrix(texts: list[str], embedder: Embedder) -> np.ndarray:
    return cosine_matrices([texts], embedder)[0]


def cosine_matrices(lists: Sequence[list[str]], embedder: Embedder) -> list[np.ndarray]:
    """Return the cosines of the texts' embeddings, float64 [N, N] for each list of N texts, rounded to 6 digits.

    Equal texts have cosine 1. A text whose vector is 0 has cosine 0 with all others.
    """
    distinct = [texts if len(set(texts)) == len(texts) else list(dict.fromkeys(texts)) for texts in lists]
    found: list[np.ndarray] = [np.empty(0)] * len(lists)
    for size, indices in _equal_sizes(distinct):
        block = np.empty((len(indices), size, size))
        buffer = np.empty((size, 0))
        with np.errstate(over="ignore", invalid="ignore"):
            for products, index in zip(block, indices, strict=True):
                vectors = embedder.shaped(distinct[index])
                if buffer.shape != vectors.shape:
                    buffer = np.empty(vectors.shape)
                buffer[...] = vectors
                np.dot(buffer, buffer.T, out=products)
                squares = products.diagonal()
                # Also false for vectors that are not finite.
                if not (np.minimum.reduce(squares) > 1 / HUGE and np.maximum.reduce(squares) < HUGE):
                    embedder.check_finite(vectors, distinct[index])
                    buffer[...] = unit_vectors(vectors)
                    np.dot(buffer, buffer.T, out=products)
        _scale(block)
        for cosines, index in zip(block, indices, strict=True):
            found[index] = cosines
    for index, (texts, some) in enumerate(zip(lists, distinct, strict=True)):
        if len(some) < len(texts):
            place = {text: number for number, text in enumerate(some)}
            order = np.array([place[text] for text in texts], dtype=np.intp)
            found[index] = found[index].take(order, axis=0).take(order, axis=1)
    return found


def _equal_sizes(lists: Sequence[list[str]]) -> Iterator[tuple[int, list[int]]]:
    """Yield sizes, and the indices of lists of that size, with at most `CELLS` cosines."""
    by_size: dict[int, list[int]] = {}
    for index, texts in enumerate(lists):
        by_size.setdefault(len(texts), []).append(index)
    for size, indices in by_size.items():
        step = max(1, CELLS // max(1, size * size))
        for start in range(0, len(indices), step):
            yield size, indices[start : start + step]


def _scale(block: np.ndarray) -> None:
    """Make products of vectors [G, N, N] their cosines, in place. Scaling products is less work than vectors."""
    flat = block.reshape(len(block), -1)
    squares = flat[:, :: block.shape[1] + 1].copy()
    squares[squares == 0] = np.inf
    scale = 1.0 / np.sqrt(squares)
    block *= scale[:, :, None] * scale[:, None, :]
    block *= 1e6
    np.rint(block, out=block)
    block /= 1e6
    flat[:, :: block.shape[1] + 1] = 1.0


def coverage(samples: np.ndarray, references: np.ndarray) -> float:
    """Return the mean over references [R, dim] of the best cosine to a sample [M, dim] (arXiv 2606.00544)."""
    return float(cosines(references, samples).max(axis=1).mean())


def diversity(samples: np.ndarray) -> float:
    """Return 1 minus the mean cosine over all pairs of samples [M, dim]; NaN with fewer than two samples."""
    count = len(samples)
    if count < 2:
        return float("nan")
    units = unit_vectors(samples)
    # The squared length of the sum is the sum over all ordered pairs, including each sample with itself.
    total = units.sum(axis=0)
    itself = (units**2).sum()
    return float(1 - (total @ total - itself) / (count * (count - 1)))


def mean_distance(cosines: np.ndarray) -> float:
    """Return 1 minus the mean cosine over all pairs of texts, from cosines [N, N]; NaN for fewer than two texts."""
    count = len(cosines)
    if count < 2:
        return float("nan")
    # Rounding can raise the mean cosine of equal texts above 1.
    return max(0.0, float(1 - (cosines.sum() - count) / (count * (count - 1))))


def nearest_cosines(vectors: np.ndarray) -> np.ndarray:
    """Return each vector's cosine to the nearest other one, [n], for vectors [n, dim]. Computes O(n²) products."""
    units = unit_vectors(vectors)
    nearest = np.empty(len(units))
    for start in range(0, len(units), 512):
        block = units[start : start + 512] @ units.T
        block[np.arange(len(block)), start + np.arange(len(block))] = -np.inf
        nearest[start : start + 512] = block.max(axis=1)
    return nearest


def cosines(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    if not len(rows) or not len(columns):
        raise ValueError("Coverage and alignment need at least one sample and one reference.")
    return np.asarray(unit_vectors(rows) @ unit_vectors(columns).T)
