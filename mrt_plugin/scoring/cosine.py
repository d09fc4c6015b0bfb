"""Coverage, alignment and diversity of sampled responses, computed from the cosines of their embeddings."""

import numpy as np

from mrt_plugin.scoring.embedders import unit_vectors


def coverage(samples: np.ndarray, references: np.ndarray) -> float:
    """Return the coverage of the references: the mean over references of the best cosine to a sample.

    Defined as in the project's design page, after arXiv 2606.00544.

    Args:
        samples: [M, dim], the embeddings of one prompt's M samples. Vectors may have any length; a zero vector has
            cosine 0.
        references: [R, dim], the embeddings of the prompt's R reference responses.

    Raises:
        ValueError: if there are no samples or no references, or their dimensions differ.

    Example:

    >>> coverage(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 1.0]]))
    0.5
    """
    return float(cosines(references, samples).max(axis=1).mean())


def alignment(samples: np.ndarray, references: np.ndarray) -> float:
    """Return the alignment of the samples: the mean over samples of the best cosine to a reference.

    Arguments and errors are those of `coverage`.

    Example:

    >>> alignment(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 1.0]]))
    1.0
    """
    return coverage(references, samples)


def diversity(samples: np.ndarray) -> float:
    """Return 1 minus the mean cosine over all pairs of samples; NaN with fewer than two samples.

    Args:
        samples: [M, dim], the embeddings of one prompt's M samples.

    Example:

    >>> diversity(np.array([[1.0, 0.0], [0.0, 1.0]]))
    1.0
    """
    count = len(samples)
    if count < 2:
        return float("nan")
    units = unit_vectors(samples)
    # The squared length of the sum is the sum over all ordered pairs, including each sample with itself.
    total = units.sum(axis=0)
    itself = (units**2).sum()
    return float(1 - (total @ total - itself) / (count * (count - 1)))


def cosines(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the cosines [len(rows), len(columns)].

    Raises:
        ValueError: if either is empty.
    """
    if not len(rows) or not len(columns):
        raise ValueError("Coverage and alignment need at least one sample and one reference.")
    found: np.ndarray = unit_vectors(rows) @ unit_vectors(columns).T
    return found
