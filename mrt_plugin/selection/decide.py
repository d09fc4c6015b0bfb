"""The decisions for a batch of groups: a stateless function, to be run in any process or on any machine."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Features, List, Value

from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.selection.candidates import candidate_texts, candidates_of
from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings
from mrt_plugin.selection.prepare import make_pool

CELLS = 2**18
"""Cosines held at a time: 2 MiB of float64, so that they are still in the processor's cache when they are used."""

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
    """`choose_batch` where no vectors are in the cache yet, on a worker of its own machine: they are computed for the
    whole batch first, since a model is quickest with many texts of a length."""
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
    """The decisions for some groups, given and answered by columns: stateless, and each group for itself.

    Args:
        batch: the columns `id`, `responses` and, where there are any, `scores`, `weights` and `k`, each group's own.
        strategy: what chooses.
        settings: its options; its `k` is for batches without that column.
        seed: of the hashes.
        embedder: for a strategy that needs embeddings.
        n: the most candidates of a group.

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
        order, pool = make_pool(name, [responses[index] for index in candidates], scores, seed, embedder)
        waiting.setdefault(k, []).append((place, candidates[order], pool))
        cells += len(order) ** 2
        if cells >= CELLS:
            flush()
            cells = 0
    flush()
    return decisions
