"""Measures of one prompt's samples: the expected best of m, coverage, alignment and diversity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrt_plugin.scoring.cosine import alignment, cosines, diversity
from mrt_plugin.scoring.embedders import Embedder

NAN = float("nan")


def expected_best(values: np.ndarray, m: int) -> np.ndarray:
    """Return the largest of m values, averaged over all ways to choose m of n: [...] for values [..., n].

    The result is exact. With the values in rising order, the j-th of n is the largest in C(j-1, m-1) of the C(n, m)
    subsets. For values of 0 and 1 this is pass@k with k = m (Chen et al., "Evaluating Large Language Models Trained on
    Code", arXiv 2107.03374, equation 1).

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
    every = asked or [2**power for power in range(most.bit_length())] + [most]
    return sorted({m for m in every if 1 <= m <= most})


@dataclass(frozen=True)
class Closeness:
    """Embeddings of one prompt's R references [R, dim] and n samples [n, dim]. What needs more of them is NaN."""

    references: np.ndarray
    samples: np.ndarray

    def coverage(self, m: int) -> float:
        """Return the coverage of m samples, averaged over all choices of m of the n."""
        known = len(self.references) and 1 <= m <= len(self.samples)
        return float(expected_best(cosines(self.references, self.samples), m).mean()) if known else NAN

    @property
    def alignment(self) -> float:
        return alignment(self.samples, self.references) if len(self.references) and len(self.samples) else NAN

    @property
    def diversity(self) -> float:
        return diversity(self.samples)

    @property
    def reference_coverage(self) -> float:
        """The mean over references of the best cosine to another: the coverage of R - 1 draws from their source."""
        if len(self.references) < 2:
            return NAN
        found = cosines(self.references, self.references)
        np.fill_diagonal(found, -np.inf)
        return float(found.max(axis=1).mean())


def closeness(references: Sequence[str], samples: Sequence[str], embedder: Embedder) -> Closeness:
    """Embed one prompt's texts, each distinct text once."""
    texts = list(dict.fromkeys([*references, *samples]))
    vectors = embedder(texts) if texts else np.zeros((0, 1))
    place = {text: index for index, text in enumerate(texts)}
    return Closeness(*(vectors[[place[text] for text in some]] for some in (references, samples)))
