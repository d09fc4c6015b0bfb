"""Which responses of a pool a selector may pick from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mrt_plugin.groups.messages import response_text
from mrt_plugin.selection.prepare import tie_keys


def candidates_of(batch: dict[str, list[Any]], place: int, *, n: int | None, seed: int) -> np.ndarray:
    """The candidates of one group: those of weight above 0, and of these a random `n`.

    The draw depends on (seed, group id, response text) alone, so a larger `n` adds candidates and removes none.

    Args:
        batch: the columns `id`, `responses` and, where there are any, `scores` and `weights`.
        place: which group of the batch.
        n: the most candidates there may be.
        seed: of the draw.

    Returns:
        Indices in the pool, rising.
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
    """The distinct texts of the candidates in some groups, without the groups that have fewer than `at_least`.

    Args:
        batch: as for `candidates_of`.
        n: the most candidates there may be.
        seed: of the draw.
        at_least: with K + 1, only groups from which something is to be chosen.
    """
    texts: dict[str, None] = {}
    for place, responses in enumerate(batch["responses"]):
        candidates = candidates_of(batch, place, n=n, seed=seed)
        if len(candidates) >= at_least:
            texts.update(dict.fromkeys(response_text(responses[index]) for index in candidates))
    return list(texts)
