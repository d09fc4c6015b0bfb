"""From a group to the pool that a selector sees: tie order and cosines."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.groups.messages import response_text
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.selection.pool import Pool


def make_pool(
    name: str, responses: Sequence[Any], scores: np.ndarray | None, seed: int, embedder: Embedder | None
) -> tuple[np.ndarray, Pool]:
    """The pool in tie order, and that order as indices into `responses`."""
    keys = tie_keys(name, responses, scores, seed)
    order = np.argsort(keys) if scores is None else np.lexsort((keys, -scores))
    cosines = None
    if embedder is not None:
        cosines = cosine_matrix([response_text(responses[index]) for index in order], embedder)
    return order, Pool(keys[order], None if scores is None else scores[order], cosines)


def tie_keys(
    name: str, responses: Sequence[Any], scores: np.ndarray | None, seed: int, purpose: bytes = b"select"
) -> np.ndarray:
    """[N] uint64 hashes of (seed, group id, response text). Repeated texts are told apart by their rank in score."""
    keys = np.empty(len(responses), dtype=np.uint64)
    seen: Counter[bytes] = Counter()
    prefix = (purpose, str(seed).encode(), name.encode())
    for index in range(len(responses)) if scores is None else np.argsort(-scores, kind="stable"):
        text = canonical(responses[index])
        keys[index] = int.from_bytes(digest(*prefix, text, str(seen[text]).encode()), "little")
        seen[text] += 1
    return keys


def cosine_matrix(texts: list[str], embedder: Embedder) -> np.ndarray:
    """Cosines of the texts' embeddings, [N, N] float64, rounded to 6 digits so that round-off makes no differences.

    The same text has cosine 1 with itself; a text whose vector is 0 has cosine 0 with all others.
    """
    distinct = sorted(set(texts))
    cosines = _cosines(embedder(distinct))
    place = {text: index for index, text in enumerate(distinct)}
    index = [place[text] for text in texts]
    return cosines[np.ix_(index, index)]


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """[n, n] from [n, dim]. Scaling the products is less work than scaling the vectors."""
    products = vectors @ vectors.T
    lengths = np.sqrt(products.diagonal())
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    products *= scale[:, None] * scale
    np.round(products, 6, out=products)
    np.fill_diagonal(products, 1.0)
    return products
