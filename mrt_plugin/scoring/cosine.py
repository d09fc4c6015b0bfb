"""Coverage, alignment and diversity of sampled responses, from the cosines of their embeddings."""

import numpy as np

from mrt_plugin.scoring.embedders import unit_vectors


def coverage(samples: np.ndarray, references: np.ndarray) -> float:
    """How much of the references the samples reach: the mean over references of the best cosine to a sample.

    Defined as in the project's design page, after arXiv 2606.00544.

    Args:
        samples: [M, dim], the embeddings of one prompt's samples; of any length, a zero vector has cosine 0.
        references: [R, dim], those of its reference responses.

    Raises:
        ValueError: if there are no samples or no references, or their dimensions differ.

    Example:

    >>> coverage(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 1.0]]))
    0.5
    """
    return float(cosines(references, samples).max(axis=1).mean())


def alignment(samples: np.ndarray, references: np.ndarray) -> float:
    """How far the samples stay with the references: the mean over samples of the best cosine to a reference.

    Args and errors as for `coverage`.

    Example:

    >>> alignment(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 1.0]]))
    1.0
    """
    return coverage(references, samples)


def diversity(samples: np.ndarray) -> float:
    """1 - the mean cosine over all pairs of samples; NaN with fewer than two.

    Args:
        samples: [M, dim], the embeddings of one prompt's samples.

    Example:

    >>> diversity(np.array([[1.0, 0.0], [0.0, 1.0]]))
    1.0
    """
    count = len(samples)
    if count < 2:
        return float("nan")
    units = unit_vectors(samples)
    # The squared length of the sum is the sum over all ordered pairs, each sample with itself included.
    total = units.sum(axis=0)
    itself = (units**2).sum()
    return float(1 - (total @ total - itself) / (count * (count - 1)))


def cosines(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[len(rows), len(columns)]

    Raises:
        ValueError: if either is empty.
    """
    if not len(rows) or not len(columns):
        raise ValueError("Coverage and alignment need at least one sample and one reference.")
    found: np.ndarray = unit_vectors(rows) @ unit_vectors(columns).T
    return found
