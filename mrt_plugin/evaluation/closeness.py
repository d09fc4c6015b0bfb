"""Compare one prompt's samples with its references and with each other: coverage of m, alignment and diversity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrt_plugin.evaluation.best_of import expected_best
from mrt_plugin.scoring.cosine import alignment, cosines, coverage, diversity
from mrt_plugin.scoring.embedders import Embedder


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
        if not len(self.references) or not 1 <= m <= len(self.samples):
            return float("nan")
        return float(expected_best(cosines(self.references, self.samples), m).mean())

    @property
    def alignment(self) -> float:
        """Return the alignment; NaN without references or samples.

        Its expectation is the same for any number of samples.
        """
        known = len(self.references) and len(self.samples)
        return alignment(self.samples, self.references) if known else float("nan")

    @property
    def diversity(self) -> float:
        """Return the diversity; NaN with fewer than 2 samples.

        Its expectation is the same for any number of samples from 2.
        """
        return diversity(self.samples)

    @property
    def reference_diversity(self) -> float:
        """Return the diversity of the references; NaN with fewer than 2."""
        return diversity(self.references)

    @property
    def reference_coverage(self) -> float:
        """Return how well the references cover each other; NaN with fewer than 2.

        It is the mean over references of the best cosine to one of the other R - 1. It estimates the coverage of
        R - 1 draws from the source of the references.
        """
        count = len(self.references)
        if count < 2:
            return float("nan")
        places = np.arange(count)
        one = self.references
        return float(np.mean([coverage(one[places != place], one[[place]]) for place in places]))


def closeness(references: Sequence[str], samples: Sequence[str], embedder: Embedder) -> Closeness:
    """Embed one prompt's texts.

    Raises:
        ValueError: if the embedder returns another shape, or numbers that are not finite.
    """
    texts = list(dict.fromkeys([*references, *samples]))
    if not texts:
        return Closeness(np.zeros((0, 1)), np.zeros((0, 1)))
    vectors = embedder(texts)
    place = {text: index for index, text in enumerate(texts)}
    return Closeness(*(vectors[[place[text] for text in some]] for some in (references, samples)))
