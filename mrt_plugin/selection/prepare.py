"""Build the pool that a selector sees from a group: tie order and cosines."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mrt_plugin.groups.keys import canonical, digests
from mrt_plugin.groups.messages import response_text
from mrt_plugin.scoring.embedders import Embedder, unit_vectors
from mrt_plugin.selection.pool import Pool

HUGE = 1e200
"""Vectors with squared lengths between 1e-200 and 1e200 are not rescaled first."""


def make_pool(
    name: str, responses: Sequence[Any], scores: np.ndarray | None, seed: int, embedder: Embedder | None
) -> tuple[np.ndarray, Pool]:
    """Return the tie order as indices into `responses`, and the pool in that order."""
    keys = None
    if scores is not None:
        order = np.argsort(-scores)
        ranked = scores[order]
    if scores is None or (ranked[1:] == ranked[:-1]).any():
        keys = tie_keys(name, responses, scores, seed)
        order = np.argsort(keys) if scores is None else np.lexsort((keys, -scores))

    def hashes() -> np.ndarray:
        found = tie_keys(name, responses, scores, seed) if keys is None else keys
        return found[order]

    cosines = None
    if embedder is not None:
        cosines = cosine_matrix([response_text(responses[index]) for index in order.tolist()], embedder)
    return order, Pool(len(order), None if scores is None else scores[order], cosines, hashes)


def tie_keys(
    name: str, responses: Sequence[Any], scores: np.ndarray | None, seed: int, purpose: bytes = b"select"
) -> np.ndarray:
    """Return the hashes of (seed, group id, response text), [N] uint64.

    Repeated texts get different hashes by their rank in score.
    """
    seen: Counter[bytes] = Counter()
    endings = []
    by_score = np.arange(len(responses)) if scores is None else np.argsort(-scores, kind="stable")
    for index in by_score.tolist():
        text = canonical(responses[index])
        endings.append((text, str(seen[text]).encode()))
        seen[text] += 1
    keys = np.empty(len(responses), dtype=np.uint64)
    found = digests((purpose, str(seed).encode(), name.encode()), endings)
    keys[by_score] = np.frombuffer(b"".join(found), dtype="<u8")
    return keys


def cosine_matrix(texts: list[str], embedder: Embedder) -> np.ndarray:
    """Return the cosines of the texts' embeddings, [N, N] float64, rounded to 6 digits to remove round-off.

    Equal texts have cosine 1. A text whose vector is 0 has cosine 0 with all others.
    """
    distinct = sorted(set(texts))
    cosines = _cosines(embedder(distinct))
    place = {text: index for index, text in enumerate(distinct)}
    index = np.array([place[text] for text in texts], dtype=np.intp)
    return cosines.take(index, axis=0).take(index, axis=1)


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """Return the cosines [n, n] of vectors [n, dim]. Scaling the products is less work than scaling the vectors."""
    with np.errstate(over="ignore", invalid="ignore"):
        products = vectors @ vectors.T
    squares = products.diagonal()
    if not ((squares > 1 / HUGE) & (squares < HUGE)).all():
        # A cosine does not depend on the vectors' lengths. Without rescaling, their products might overflow or vanish.
        vectors = unit_vectors(vectors)
        products = vectors @ vectors.T
        squares = products.diagonal()
    scale = np.divide(1.0, np.sqrt(squares), out=np.zeros(len(squares)), where=squares > 0)
    products *= scale[:, None] * scale
    np.round(products, 6, out=products)
    np.fill_diagonal(products, 1.0)
    return products
