"""Find texts that are nearly the same, by the Jaccard similarity of their character 5-grams."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from datasketch import MinHash, MinHashLSH

from mrt_plugin.groups.batches import batch_size
from mrt_plugin.groups.messages import normalised, prompt_text

PERMUTATIONS = 128
"""The numbers of a signature. An estimated similarity J has a standard deviation of sqrt(J (1 - J) / 128) <= 0.045."""

RECALL = 0.95
"""The share of pairs exactly at the threshold that the index must find. It finds more of the more similar pairs."""


def shingles(text: str) -> np.ndarray:
    """Return the distinct hashes of a normalised text's 5-grams, uint32, ascending. A shorter text is one shingle."""
    points = np.frombuffer(normalised(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    width = min(5, len(points))
    hashes = np.zeros(len(points) - width + 1 if width else 0, dtype=np.uint64)
    for offset in range(width):  # a polynomial in an odd multiplier, modulo 2^64; the upper half is well mixed
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + points[offset : offset + len(hashes)]
    return np.unique((hashes * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(32)).astype(np.uint32)


def jaccard_matrix(texts: Sequence[str]) -> np.ndarray:
    """Return the exact Jaccard similarity of every pair of a few texts, [n, n]. Two empty texts have similarity 1."""
    from scipy.sparse import csr_matrix

    sets = [shingles(text) for text in texts]
    sizes = np.array([len(found) for found in sets], dtype=np.int64)
    columns = np.unique(np.concatenate([*sets, np.empty(0, dtype=np.uint32)]), return_inverse=True)[1]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    shape = (len(sets), columns.max(initial=0) + 1)
    members = csr_matrix((np.ones(len(columns), dtype=np.int64), columns, ends), shape=shape)
    common = (members @ members.T).toarray()
    union = sizes[:, None] + sizes[None, :] - common
    return np.asarray(np.where(union > 0, common / np.maximum(union, 1), 1.0))


def signature(text: str) -> np.ndarray:
    """Return the MinHash of a text's shingles, uint32 [128]."""
    sketch = _empty().copy()
    found = shingles(text)
    for start in range(0, len(found), 20_000):  # 10 MiB at a time
        sketch.update_batch(found[start : start + 20_000].tolist())
    return np.asarray(sketch.hashvalues)


def prompt_signatures(groups: Dataset, num_proc: int | None = None) -> np.ndarray:
    """Return the signatures of all prompts, uint32 [n, 128]: half a gigabyte for a million."""
    prompts = groups.select_columns(["prompt"])
    signed = prompts.map(
        _sign,
        batched=True,
        batch_size=batch_size(prompts, 256),
        remove_columns=["prompt"],
        features=Features({"signature": List(Value("uint32"), length=PERMUTATIONS)}),
        num_proc=num_proc,
        keep_in_memory=True,
        new_fingerprint=f"{groups._fingerprint}-signatures",
        desc="Hashing prompts",
    )
    chunks = signed.data.column("signature").chunks
    return np.concatenate([chunk.flatten().to_numpy() for chunk in chunks]).reshape(-1, PERMUTATIONS)


def _sign(batch: dict[str, list[Any]]) -> dict[str, Any]:
    return {"signature": [signature(prompt_text(prompt)) for prompt in batch["prompt"]]}


class NearIndex:
    """Find the texts at or above a Jaccard similarity among those inserted so far, all given by their signatures."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
        self.signatures: dict[int, np.ndarray] = {}

    def insert(self, key: int, signed: np.ndarray) -> None:
        self.signatures[key] = signed
        self.index.insert(key, _sketch(signed), check_duplication=False)

    def near(self, signed: np.ndarray) -> list[int]:
        """Return the keys of the texts that are near, ascending."""
        candidates = sorted(self.index.query(_sketch(signed)))
        if not candidates:
            return []
        agree = np.mean([self.signatures[key] == signed for key in candidates], axis=1)
        return [key for key, share in zip(candidates, agree, strict=True) if share >= self.threshold]


def near_any(signatures: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """Return for each text whether it is near any of the others, [n] bool, from signatures [n, 128] and [m, 128]."""
    index = NearIndex(threshold)
    for number, signed in enumerate(np.unique(others, axis=0)):
        index.insert(number, signed)
    return np.array([bool(index.near(signed)) for signed in signatures], dtype=bool)


def clusters(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Return the cluster of each text, [n] integers. Texts linked by a chain of near texts are in one cluster."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    distinct, member_of = np.unique(signatures, axis=0, return_inverse=True)
    index = NearIndex(threshold)
    found: list[tuple[int, int]] = []
    for number, signed in enumerate(distinct):
        found += [(number, other) for other in index.near(signed)]
        index.insert(number, signed)
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs), dtype=np.int8), pairs.T), shape=(len(distinct), len(distinct)))
    return np.asarray(connected_components(graph, directed=False)[1])[member_of.reshape(-1)]


@cache
def bands(threshold: float) -> tuple[int, int]:
    """Return the bands and rows of the index: the most rows that still find `RECALL` of the pairs.

    Formula: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.
    """
    for rows in range(PERMUTATIONS // 2, 1, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= RECALL:
            return count, rows
    return PERMUTATIONS, 1


@cache
def _empty() -> MinHash:
    return MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)


def _sketch(signed: np.ndarray) -> MinHash:
    like = _empty()
    return MinHash(hashvalues=signed, permutations=like.permutations, seed=like.seed, scheme=like.scheme)
