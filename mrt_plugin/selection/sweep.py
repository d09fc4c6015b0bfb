"""What the exponent `alpha` of `diverse_best_k` trades: quality for diversity, measured on the pools at hand."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from mrt_plugin.groups.messages import response_text
from mrt_plugin.options import Similarity
from mrt_plugin.scoring.embedders import Embedder, load_embedder
from mrt_plugin.selection.adaptive import diversity
from mrt_plugin.selection.prepare import cosine_matrix
from mrt_plugin.selection.report import SelectionReport
from mrt_plugin.selection.run import run_selection

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepPoint:
    """One selection; the means are over groups with more than K responses."""

    selector: str
    alpha: float | None
    mean_score: float
    """Of the responses kept."""
    diversity: float
    """1 minus the mean cosine of two responses kept."""
    zero_gain_share: float
    """Of the picks after a group's first."""
    as_best_k: float
    """The share of picks that `best_k` makes too."""


def sweep_alpha(
    groups: Dataset,
    *,
    k: int,
    alphas: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0),
    similarity: Similarity = "paper",
    seed: int = 0,
    n: int | None = None,
    embedder: str | Callable[[list[str]], Any] = "lexical",
    score_cache: str | Path | None = None,
    num_proc: int | None = None,
) -> list[SweepPoint]:
    """Select with each alpha, and with `random_k` and `best_k` to compare with.

    Args:
        groups: with scores.
        alphas: exponents to try.
        k, similarity, seed, n, embedder, score_cache, num_proc: as for `select`.

    Returns:
        A point for `random_k`, one for `best_k`, then one for each alpha.

    Raises:
        ValueError: if there are no scores, or no group has more than K responses.

    Example:

    ```python
    for point in sweep_alpha(groups, k=4):
        print(point.alpha, point.mean_score, point.diversity)
    ```
    """
    used = load_embedder(embedder, score_cache=score_cache)
    common: dict[str, Any] = {"k": k, "seed": seed, "n": n, "num_proc": num_proc}
    wide = [place for place, responses in enumerate(groups["responses"]) if len(responses) > k]
    if not wide:
        raise ValueError(f"No group has more than k={k} responses: there is nothing to choose.")
    groups = groups.select(wide)
    best, best_report = run_selection(groups, "best_k", **common)
    drawn, drawn_report = run_selection(groups, "random_k", **common)
    found: list[tuple[str, float | None, list[list[int]], SelectionReport]]
    found = [("random_k", None, drawn, drawn_report), ("best_k", None, best, best_report)]
    for alpha in alphas:
        told = {**common, "alpha": alpha, "similarity": similarity, "embedder": embedder, "score_cache": score_cache}
        found.append(("diverse_best_k", alpha, *run_selection(groups, "diverse_best_k", **told)))
    means = _means(groups, [picks for _, _, picks, _ in found], best, used)
    return [
        SweepPoint(name, alpha, score, spread, report.zero_gain_share, shared)
        for (name, alpha, _, report), (score, spread, shared) in zip(found, means, strict=True)
    ]


def _means(
    groups: Dataset, selections: Sequence[list[list[int]]], best: list[list[int]], embedder: Embedder
) -> list[tuple[float, float, float]]:
    """For each selection its mean score, diversity and overlap with `best`. Each pool is embedded once."""
    sums = np.zeros((len(selections), 3))
    for place, group in enumerate(groups.select_columns(["responses", "scores"])):
        cosines = cosine_matrix([response_text(response) for response in group["responses"]], embedder)
        scores = np.asarray(group["scores"], dtype=np.float64)
        for number, picks in enumerate(selections):
            kept = picks[place]
            if kept:
                shared = len(set(kept) & set(best[place])) / len(kept)
                sums[number] += scores[kept].mean(), diversity(cosines[np.ix_(kept, kept)]), shared
    return [(float(a), float(b), float(c)) for a, b, c in sums / len(groups)]
