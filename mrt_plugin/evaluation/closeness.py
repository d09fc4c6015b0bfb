"""Measures of one prompt's samples: the expected best of m, coverage, alignment and diversity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrt_plugin.scoring.cosine import alignment, cosines, coverage, diversity
from mrt_plugin.scoring.embedders import Embedder

NAN = float("nan")


def expected_best(values: np.ndarray, m: int) -> np.ndarray:
    """Return the largest of m values, averaged over all ways to choose m of n.

    The result is exact and unbiased; no random subsets are drawn. With the values in rising order, the j-th of n is
    the largest in C(j-1, m-1) of the C(n, m) subsets. For values of 0 and 1 with c ones this is
    1 - C(n-c, m)/C(n, m): pass@k with k = m (Chen et al., "Evaluating Large Language Models Trained on Code", arXiv
    2107.03374, equation 1).

    Args:
        values: [..., n]
        m: at least 1, at most n.

    Returns:
        [...]

    Raises:
        ValueError: for an m outside 1 to n.

    Example:

    >>> float(expected_best(np.array([3.0, 1.0, 2.0]), 2))  # of (3, 1), (3, 2) and (1, 2)
    2.6666666666666665
    """
    n = values.shape[-1]
    if not 1 <= m <= n:
        raise ValueError(f"The best of m={m} cannot be computed from {n} samples: m must be between 1 and {n}.")
    subsets = math.comb(n, m)
    weights = np.array([math.comb(rank, m - 1) / subsets for rank in range(n)])
    return np.asarray(np.sort(values, axis=-1) @ weights)


def levels(most: int, asked: Sequence[int] | None = None) -> list[int]:
    """Return the numbers of samples to report at, up to `most`: those `asked` for, or powers of two and `most`.

    Example:

    >>> levels(12), levels(12, [1, 5, 50])
    ([1, 2, 4, 8, 12], [1, 5])
    """
    if most < 1:
        return []
    if asked:
        return sorted({m for m in asked if 1 <= m <= most})
    return sorted({2**power for power in range(most.bit_length())} | {most})


@dataclass(frozen=True)
class Closeness:
    """Embeddings of one prompt's R references and n samples. R or n may be 0.

    Example:

    >>> from mrt_plugin.scoring import load_embedder
    >>> found = closeness(["An apple.", "A pear."], ["A pear.", "A pear."], load_embedder("lexical"))
    >>> round(found.alignment, 6), abs(round(found.diversity, 6)), round(found.coverage(2), 2)
    (1.0, 0.0, 0.5)
    """

    references: np.ndarray
    """[R, dim]"""
    samples: np.ndarray
    """[n, dim]"""

    def coverage(self, m: int) -> float:
        """Return the coverage of m samples, averaged over all choices of m of the n.

        It is NaN without references or with fewer than m samples.
        """
        known = len(self.references) and 1 <= m <= len(self.samples)
        return float(expected_best(cosines(self.references, self.samples), m).mean()) if known else NAN

    @property
    def alignment(self) -> float:
        """The alignment; NaN without references or samples. Its expectation does not depend on n."""
        return alignment(self.samples, self.references) if len(self.references) and len(self.samples) else NAN

    @property
    def diversity(self) -> float:
        """The diversity; NaN with fewer than 2 samples. Its expectation does not depend on n."""
        return diversity(self.samples)

    @property
    def reference_diversity(self) -> float:
        """The diversity of the references; NaN with fewer than 2."""
        return diversity(self.references)

    @property
    def reference_coverage(self) -> float:
        """How well the references cover each other; NaN with fewer than 2.

        It is the mean over references of the best cosine to one of the other R - 1. It estimates the coverage of
        R - 1 draws from the source of the references.
        """
        one = self.references
        if len(one) < 2:
            return NAN
        return float(np.mean([coverage(np.delete(one, place, axis=0), one[[place]]) for place in range(len(one))]))


def closeness(references: Sequence[str], samples: Sequence[str], embedder: Embedder) -> Closeness:
    """Embed one prompt's texts, each distinct text once."""
    texts = list(dict.fromkeys([*references, *samples]))
    if not texts:
        return Closeness(np.zeros((0, 1)), np.zeros((0, 1)))
    vectors = embedder(texts)
    place = {text: index for index, text in enumerate(texts)}
    return Closeness(*(vectors[[place[text] for text in some]] for some in (references, samples)))
