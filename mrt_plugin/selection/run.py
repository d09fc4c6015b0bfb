"""Applying a selector to a dataset: the same picks for any number of processes, any row order and any shard."""

import math
import uuid
from collections.abc import Callable
from typing import Any, Literal, get_args

from datasets import Dataset

from mrt_plugin.curation.rows import keep_responses
from mrt_plugin.options import Similarity
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.scoring.scores import Scorer, score_groups
from mrt_plugin.selection.decide import DECISION, choose_batch
from mrt_plugin.selection.pool import Selector, Settings
from mrt_plugin.selection.registry import get_selector
from mrt_plugin.selection.report import SelectionReport

Engine = Literal["local", "ray"]

BATCH = 256
"""Groups read at a time."""


def select(
    groups: Dataset,
    selector: str,
    *,
    k: int | None = None,
    alpha: float = 1.0,
    similarity: Similarity = "paper",
    seed: int = 0,
    embedder: str | Callable[[list[str]], Any] = "lexical",
    scorer: Scorer | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """Keep K of the N responses of each group, in the pool's order, with their scores and weights.

    A group with N <= K keeps all. A response of weight 0 is never kept. Ties go to the higher score, then to a hash of
    (seed, group id, response text).

    Args:
        groups: as `load_groups` gives them.
        selector: `random_k`, `best_k`, `diverse_k`, `diverse_best_k`, `filter_then_spread` or `all`.
        k: responses to keep per group; needed for all but `all`.
        alpha: `diverse_best_k`: the exponent on the scores.
        similarity: `diverse_k`, `diverse_best_k`: `paper` or `rescaled`.
        seed: another seed, another random choice and other ties.
        embedder: `lexical`, `sentence-transformers`, a model's name or path, or a function from n strings to an array
            [n, dim]. It is called once per group, on the group's distinct texts in sorted order, so that a vector
            never depends on what else is selected.
        scorer: a function `scorer(prompt, responses)` that gives N scores; they replace the column `scores`.
        num_proc: processes. A sentence-transformers model stays in one, since it uses all cores there.

    Raises:
        ValueError: if an option is unknown or out of bounds, or the selector needs scores and there are none.

    Example:

    ```python
    from mrt_plugin import load_groups, select

    chosen = select(load_groups("pool.jsonl"), "diverse_best_k", k=4, alpha=0.75, seed=7)
    ```
    """
    if scorer is not None:
        get_selector(selector)
        groups = score_groups(groups, scorer, num_proc=num_proc)
    picks = select_indices(
        groups, selector, k=k, alpha=alpha, similarity=similarity, seed=seed, embedder=embedder, num_proc=num_proc
    )
    return keep_responses(groups, picks)


def select_indices(groups: Dataset, selector: str, **options: Any) -> list[list[int]]:
    """Which responses `select` keeps: for each group their indices in the pool, rising.

    Takes the options of `select`, and raises what it raises.
    """
    picks, report = run_selection(groups, selector, **options)
    report.log()
    return picks


def run_selection(
    groups: Dataset,
    selector: str,
    *,
    k: int | None = None,
    alpha: float = 1.0,
    similarity: Similarity = "paper",
    seed: int = 0,
    embedder: str | Callable[[list[str]], Any] = "lexical",
    scorer: Scorer | None = None,
    num_proc: int | None = None,
    engine: Engine = "local",
) -> tuple[list[list[int]], SelectionReport]:
    """`select_indices`, together with the counts of what was done, and without logging them.

    `engine` says where: in this and `num_proc` other processes, or on `ray`. The picks are the same.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine={engine!r} is unknown: choose one of {', '.join(get_args(Engine))}.")
    strategy = get_selector(selector)
    _check(strategy, selector, k, alpha, similarity, seed)
    columns = _columns(groups)
    if scorer is not None:
        groups = score_groups(groups, scorer, num_proc=num_proc)
    elif strategy.needs_scores and "scores" not in columns:
        raise ValueError(
            f"selector={selector!r} needs scores, and the groups have none: give a column `scores` with one number "
            "per response (or `scorer=` in Python), or choose random_k or diverse_k."
        )
    used = load_embedder(embedder) if strategy.needs_embeddings else None
    names = [name for name in ("id", "responses", "scores", "weights") if name in groups.column_names]
    settings = Settings(k or 0, float(alpha), similarity)
    told = {"strategy": strategy, "settings": settings, "seed": seed, "embedder": used}
    if engine == "ray":
        from mrt_plugin.selection.ray_engine import map_on_ray

        decided = map_on_ray(groups.select_columns(names), choose_batch, told, DECISION, batch_size=BATCH)
    else:
        decided = groups.select_columns(names).map(
            choose_batch,
            fn_kwargs=told,
            batched=True,
            batch_size=BATCH,
            remove_columns=names,
            features=DECISION,
            num_proc=num_proc if used is None or used.forks else None,
            keep_in_memory=True,
            new_fingerprint=uuid.uuid4().hex,  # the cache cannot see into an embedder or a model file
            desc=f"Selecting ({selector})",
        )
    picks: list[list[int]] = decided["picked"][:]
    sizes: list[int] = decided["candidates"][:]
    report = SelectionReport(
        selector,
        None if strategy.keeps_all else k,
        similarity,
        groups=len(groups),
        candidates=sum(sizes),
        kept=sum(map(len, picks)),
        weightless=sum(decided["weightless"]),
        later_picks=sum(decided["later_picks"]),
        zero_gain=sum(decided["zero_gain"]),
    )
    if not strategy.keeps_all and k is not None:
        report.whole = sum(size <= k for size in sizes)
        report.short = sum(size < k for size in sizes)
    return picks, report


def _check(strategy: Selector, selector: str, k: Any, alpha: Any, similarity: Any, seed: Any) -> None:
    if not strategy.keeps_all:
        if k is None:
            raise ValueError(f"selector={selector!r} needs k, the responses to keep per prompt.")
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k={k!r} must be a whole number, at least 1.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha!r} must be a finite number, at least 0.")
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity={similarity!r} is unknown: choose one of {', '.join(get_args(Similarity))}.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r} must be a whole number.")


def _columns(groups: Dataset) -> list[str]:
    missing = [name for name in ("id", "prompt", "responses") if name not in groups.column_names]
    if missing:
        raise ValueError(f"The groups have no column {' or '.join(missing)}: read them with `load_groups` first.")
    return list(groups.column_names)
