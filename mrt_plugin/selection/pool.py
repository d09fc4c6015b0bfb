"""The input and output of a selector."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from mrt_plugin.groups.keys import canonical, digests
from mrt_plugin.groups.messages import response_text
from mrt_plugin.options import SelectionOptions
from mrt_plugin.scoring.cosine import cosine_matrix, unit_vectors
from mrt_plugin.scoring.embedders import Embedder


class Columns(Mapping[str, Any]):
    """One row of a batch of columns. A column is read when it is used."""

    def __init__(self, batch: Mapping[str, Sequence[Any]], row: int) -> None:
        self._batch, self._row = batch, row

    def __getitem__(self, name: str) -> Any:
        return self._batch[name][self._row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)


class Pool:
    """The candidates of one group, more than K of them, in tie order.

    Tie order sorts by score, the best first (where there are scores), then by a hash of (seed, group id, response
    text). So a selector that takes the first of several equal candidates breaks ties correctly, never by the pool's
    order. Everything is computed on first use. All arrays are in tie order.

    Args:
        metadata: the group's columns: `id`, `prompt`, `responses`, and the others that the groups have.
        order: the candidates in tie order, as indices into the group's `responses`.
        seed: the seed of the hashes.
        embedder: for `vectors` and `cosines`.
        scores: [N] in tie order.

    Example:

    >>> pool = Pool({"id": "g", "responses": ["four", "It is four.", "4"]}, [0, 1, 2])
    >>> pool.texts, pool.lengths.tolist()
    (['four', 'It is four.', '4'], [1, 3, 1])
    """

    def __init__(
        self,
        metadata: Mapping[str, Any],
        order: list[int],
        *,
        seed: int = 0,
        embedder: Embedder | None = None,
        scores: np.ndarray | None = None,
    ) -> None:
        self.metadata, self.order = metadata, order
        self._seed, self._embedder, self._scores = seed, embedder, scores

    @property
    def size(self) -> int:
        """N, the number of candidates."""
        return len(self.order)

    @property
    def scores(self) -> np.ndarray:
        """[N] float64, finite, in descending order. ValueError if the groups have none."""
        if self._scores is None:
            raise ValueError("The selector needs scores, and the groups have none: give `scores`, or a scorer.")
        return self._scores

    @property
    def responses(self) -> list[Any]:
        """The N responses as they are in the data: strings or lists of messages."""
        return [*itemgetter(*self.order)(self.metadata["responses"])]

    @cached_property
    def texts(self) -> list[str]:
        """The texts of the N responses."""
        responses = self.responses
        return responses if set(map(type, responses)) == {str} else [*map(response_text, responses)]

    @cached_property
    def lengths(self) -> np.ndarray:
        """The lengths of the texts in words, [N] int64."""
        return np.array([len(text.split()) for text in self.texts])

    @property
    def weights(self) -> np.ndarray:
        """The weights of the responses, [N] float64, above 0; 1 if the groups have no weights."""
        if "weights" not in self.metadata:
            return np.ones(self.size)
        return np.asarray(self.metadata["weights"], dtype=np.float64)[self.order]

    @cached_property
    def vectors(self) -> np.ndarray:
        """The responses' embeddings, scaled to length 1, [N, dim] float64."""
        distinct = list(dict.fromkeys(self.texts))
        found = dict(zip(distinct, unit_vectors(self._given_embedder()(distinct)), strict=True))
        return np.stack([found[text] for text in self.texts])

    @cached_property
    def cosines(self) -> np.ndarray:
        """The cosines of the embeddings, [N, N] float64, rounded to 6 digits, with 1 on the diagonal."""
        return cosine_matrix(self.texts, self._given_embedder())

    @cached_property
    def keys(self) -> np.ndarray:
        """The hashes, [N] uint64, uniform and distinct."""
        return tie_keys(self.metadata["id"], self.responses, None, self._seed)

    def _given_embedder(self) -> Embedder:
        if self._embedder is None:
            raise ValueError("The selector uses embeddings: declare it as a Selector with needs_embeddings=True.")
        return self._embedder


class Picks(NamedTuple):
    """K positions in a pool, in the order of picking, and the gain of each pick for selectors that define one."""

    positions: list[int]
    gains: list[float] | None = None


@dataclass(frozen=True)
class Selector:
    """A function of many pools at once, and the data that it needs. Pools must not affect each other's picks."""

    choose: Callable[[Sequence[Pool], SelectionOptions], list[Picks]]
    needs_scores: bool = False
    needs_embeddings: bool = False
    keeps_all: bool = False
    reads_all: bool = False
    """Whether it reads columns of the groups other than `id`, `responses`, `scores` and `weights`."""


def candidates_of(batch: Mapping[str, Sequence[Any]], row: int, *, n: int | None, seed: int) -> list[int]:
    """Return the indices of a group's candidates: `n` of its responses with weight, by a hash. More `n` adds some."""
    responses = batch["responses"][row]
    candidates = list(range(len(responses)))
    if "weights" in batch:
        candidates = [index for index, weight in enumerate(batch["weights"][row]) if weight > 0]
    if n is None or len(candidates) <= n:
        return candidates
    scores = np.asarray(batch["scores"][row], dtype=np.float64)[candidates] if "scores" in batch else None
    keys = tie_keys(batch["id"][row], [responses[index] for index in candidates], scores, seed, b"candidates")
    return sorted(candidates[place] for place in np.argsort(keys)[:n])


def candidate_texts(batch: Mapping[str, Sequence[Any]], *, n: int | None, seed: int, at_least: int) -> list[str]:
    """Return the distinct texts of the candidates, without groups that have fewer candidates than `at_least`."""
    texts: dict[str, None] = {}
    for row, responses in enumerate(batch["responses"]):
        candidates = candidates_of(batch, row, n=n, seed=seed)
        if len(candidates) >= at_least:
            texts.update(dict.fromkeys(response_text(responses[index]) for index in candidates))
    return list(texts)


def make_pool(
    group: Mapping[str, Any],
    given: Sequence[float] | None,
    candidates: list[int],
    seed: int,
    embedder: Embedder | None,
) -> Pool:
    scores = keys = None
    if given is not None:
        scores = np.array(given, dtype=np.float64)
        if len(candidates) < len(scores):
            scores = scores[candidates]
        order = np.argsort(-scores)
        ranked = scores[order]
    if scores is None or (ranked[1:] == ranked[:-1]).any():
        responses = group["responses"]
        keys = tie_keys(group["id"], [responses[index] for index in candidates], scores, seed)
        order = np.argsort(keys) if scores is None else np.lexsort((keys, -scores))
    if scores is not None:
        scores = ranked if keys is None else scores[order]
    places = list(map(candidates.__getitem__, order.tolist()))
    pool = Pool(group, places, seed=seed, embedder=embedder, scores=scores)
    if keys is not None:
        pool.keys = keys[order]
    return pool


def tie_keys(
    name: str, responses: Sequence[Any], scores: np.ndarray | None, seed: int, purpose: bytes = b"select"
) -> np.ndarray:
    """Return the hashes of (seed, group id, text), [N] uint64; repeated texts differ by their rank in score."""
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
