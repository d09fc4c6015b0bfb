"""The candidates: the responses of a pool that a selector may choose from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mrt_plugin.groups.messages import response_text
from mrt_plugin.selection.prepare import tie_keys


def candidates_of(batch: dict[str, list[Any]], place: int, *, n: int | None, seed: int) -> np.ndarray:
    """Return the candidates of one group: a random `n` of the responses with a weight above 0.

    The draw depends only on (seed, group id, response text), so a larger `n` adds candidates and removes none.

    Args:
        batch: the columns `id` and `responses`, and `scores` and `weights` if they exist.
        place: the index of the group in the batch.
        n: maximum number of candidates.
        seed: the seed of the draw.

    Returns:
        Indices in the pool, in ascending order.
    """
    responses: Sequence[Any] = batch["responses"][place]
    candidates = np.arange(len(responses))
    if "weights" in batch:
        candidates = np.flatnonzero(np.asarray(batch["weights"][place]) > 0)
    if n is None or len(candidates) <= n:
        return candidates
    scores = np.asarray(batch["scores"][place], dtype=np.float64)[candidates] if "scores" in batch else None
    texts = [responses[index] for index in candidates.tolist()]
    keys = tie_keys(batch["id"][place], texts, scores, seed, b"candidates")
    drawn: np.ndarray = np.sort(candidates[np.argsort(keys)[:n]])
    return drawn


def candidate_texts(batch: dict[str, list[Any]], *, n: int | None, seed: int, at_least: int) -> list[str]:
    """Return the distinct texts of the candidates in some groups.

    Args:
        batch: as for `candidates_of`.
        n: maximum number of candidates.
        seed: the seed of the draw.
        at_least: groups with fewer candidates are left out. K + 1 keeps only groups in which there is a choice.
    """
    texts: dict[str, None] = {}
    for place, responses in enumerate(batch["responses"]):
        candidates = candidates_of(batch, place, n=n, seed=seed)
        if len(candidates) >= at_least:
            texts.update(dict.fromkeys(response_text(responses[index]) for index in candidates))
    return list(texts)
