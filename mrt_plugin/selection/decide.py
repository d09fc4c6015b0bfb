"""The decisions for a batch of groups: a stateless function, to be run in any process or on any machine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Features, List, Value

from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings
from mrt_plugin.selection.prepare import make_pool

CELLS = 2**22
"""Cosines held at a time: 32 MiB of float64, whatever the pools' sizes."""

DECISION = Features(
    {
        "picked": List(Value("int64")),
        "candidates": Value("int64"),
        "weightless": Value("int64"),
        "later_picks": Value("int64"),
        "zero_gain": Value("int64"),
    }
)


def choose_batch(
    batch: dict[str, list[Any]], *, strategy: Selector, settings: Settings, seed: int, embedder: Embedder | None
) -> dict[str, list[Any]]:
    """The decisions for some groups, given and answered by columns: stateless, and each group for itself.

    Args:
        batch: the columns `id`, `responses` and, where there are any, `scores` and `weights`.
        strategy: what chooses.
        settings: its options.
        seed: of the hashes.
        embedder: for a strategy that needs embeddings.

    Returns:
        The columns of `DECISION`, one row per group.
    """
    decisions: dict[str, list[Any]] = {name: [None] * len(batch["id"]) for name in DECISION}
    waiting: list[tuple[int, np.ndarray, Pool]] = []

    def decide(place: int, picked: Sequence[int], gains: list[float] | None) -> None:
        decisions["picked"][place] = sorted(picked)
        decisions["later_picks"][place] = len(gains) - 1 if gains else 0
        decisions["zero_gain"][place] = sum(gain == 0 for gain in gains[1:]) if gains else 0

    def flush() -> None:
        choices: list[Choice] = strategy.choose([pool for _, _, pool in waiting], settings)
        for (place, candidates, _), choice in zip(waiting, choices, strict=True):
            decide(place, candidates[choice.picked].tolist(), choice.gains)
        waiting.clear()

    cells = 0
    for place, (name, responses) in enumerate(zip(batch["id"], batch["responses"], strict=True)):
        candidates = np.arange(len(responses))
        if "weights" in batch:
            candidates = np.flatnonzero(np.asarray(batch["weights"][place]) > 0)
        decisions["candidates"][place] = len(candidates)
        decisions["weightless"][place] = len(responses) - len(candidates)
        if strategy.keeps_all or len(candidates) <= settings.k:
            decide(place, candidates.tolist(), None)
            continue
        scores = np.asarray(batch["scores"][place], dtype=np.float64)[candidates] if "scores" in batch else None
        order, pool = make_pool(name, [responses[index] for index in candidates], scores, seed, embedder)
        waiting.append((place, candidates[order], pool))
        cells += len(order) ** 2
        if cells >= CELLS:
            flush()
            cells = 0
    flush()
    return decisions
