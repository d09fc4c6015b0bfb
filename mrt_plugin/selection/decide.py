"""The decisions for a batch of groups: a stateless function that runs in any process or on any machine."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Features, List, Value

from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.selection.candidates import candidate_texts, candidates_of
from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings
from mrt_plugin.selection.prepare import make_pool

CELLS = 2**17
"""Number of cosines held at a time: 1 MiB of float64, which stay in the processor's cache until they are used."""

DECISION = Features(
    {
        "picked": List(Value("int64")),
        "candidates": Value("int64"),
        "weightless": Value("int64"),
        "left_out": Value("int64"),
        "later_picks": Value("int64"),
        "zero_gain": Value("int64"),
    }
)


def embed_and_choose(batch: dict[str, list[Any]], **told: Any) -> dict[str, list[Any]]:
    """Compute the vectors of a batch, then run `choose_batch`.

    Used on a worker whose cache has no vectors yet. The vectors are computed for all groups of the batch first,
    because a model is fastest with many texts of similar length.
    """
    least = min(batch["k"]) if "k" in batch else told["settings"].k
    told["embedder"].prepare([candidate_texts(batch, n=told["n"], seed=told["seed"], at_least=least + 1)])
    return choose_batch(batch, **told)


def choose_batch(
    batch: dict[str, list[Any]],
    *,
    strategy: Selector,
    settings: Settings,
    seed: int,
    embedder: Embedder | None,
    n: int | None = None,
) -> dict[str, list[Any]]:
    """Choose responses for a batch of groups. Input and output are columns. Stateless, each group separately.

    Args:
        batch: the columns `id` and `responses`, and `scores`, `weights` and `k` (one K per group) if they exist.
        strategy: the selector.
        settings: its options. Its `k` applies to batches without the column `k`.
        seed: the seed of the hashes.
        embedder: the embedder, for a strategy that needs embeddings.
        n: maximum number of candidates of a group.

    Returns:
        The columns of `DECISION`, one row per group.
    """
    decisions: dict[str, list[Any]] = {name: [None] * len(batch["id"]) for name in DECISION}
    waiting: dict[int, list[tuple[int, np.ndarray, Pool]]] = {}

    def decide(place: int, picked: Sequence[int], gains: list[float] | None) -> None:
        decisions["picked"][place] = sorted(picked)
        decisions["later_picks"][place] = len(gains) - 1 if gains else 0
        decisions["zero_gain"][place] = sum(gain == 0 for gain in gains[1:]) if gains else 0

    def flush() -> None:
        for k, pools in waiting.items():
            choices: list[Choice] = strategy.choose([pool for _, _, pool in pools], replace(settings, k=k))
            for (place, candidates, _), choice in zip(pools, choices, strict=True):
                decide(place, candidates[choice.picked].tolist(), choice.gains)
        waiting.clear()

    cells = 0
    for place, (name, responses) in enumerate(zip(batch["id"], batch["responses"], strict=True)):
        candidates = candidates_of(batch, place, n=n, seed=seed)
        weightless = sum(weight <= 0 for weight in batch["weights"][place]) if "weights" in batch else 0
        k = batch["k"][place] if "k" in batch else settings.k
        decisions["candidates"][place] = len(candidates)
        decisions["weightless"][place] = weightless
        decisions["left_out"][place] = len(responses) - weightless - len(candidates)
        if strategy.keeps_all or len(candidates) <= k:
            decide(place, candidates.tolist(), None)
            continue
        scores = np.asarray(batch["scores"][place], dtype=np.float64)[candidates] if "scores" in batch else None
        order, pool = make_pool(name, [responses[index] for index in candidates.tolist()], scores, seed, embedder)
        waiting.setdefault(k, []).append((place, candidates[order], pool))
        cells += len(order) ** 2
        if cells >= CELLS:
            flush()
            cells = 0
    flush()
    return decisions
