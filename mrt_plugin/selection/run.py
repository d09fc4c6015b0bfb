"""Apply a selector to a dataset. The picks are the same for any number of processes, row order and shard."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets

from mrt_plugin.engine import check_engine, map_batches
from mrt_plugin.groups.batches import batch_size
from mrt_plugin.groups.rows import keep_responses
from mrt_plugin.options import (
    AllocationKind,
    Engine,
    MultiResponseOptions,
    SelectionOptions,
    Similarity,
    WeightSource,
    check_options,
)
from mrt_plugin.scoring.agreement import rank_agreement
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.scoring.scores import Scorer, score_columns, with_scores
from mrt_plugin.scoring.weights import weigh_groups
from mrt_plugin.selection.adaptive import AdaptiveK, adaptive_k
from mrt_plugin.selection.decide import DECISION, choose_batch, embed_and_choose
from mrt_plugin.selection.pool import candidate_texts
from mrt_plugin.selection.registry import get_selector
from mrt_plugin.selection.report import SelectionReport

BATCH = 256
"""Number of groups read at a time."""


def select(
    groups: Dataset,
    selector: str,
    *,
    k: int | None = None,
    alpha: float = 0.25,
    similarity: Similarity = "rescaled",
    seed: int = 0,
    n: int | None = None,
    embedder: str | Callable[[list[str]], Any] = "lexical",
    scorer: Scorer | Sequence[Scorer] | None = None,
    score_cache: str | Path | None = None,
    allocation: AllocationKind = "fixed",
    allocation_score: str = "diversity",
    mean_k: float | None = None,
    target_total: int | None = None,
    min_k: int = 1,
    max_k: int | None = None,
    weights: WeightSource = "column",
    weight_temperature: float = 1.0,
    num_proc: int | None = None,
    engine: Engine = "local",
) -> Dataset:
    """Keep K of the N responses of each group, in the pool's order, with their scores and weights.

    A group with N <= K keeps all responses. A response of weight 0 is never kept. The higher score decides ties, then
    a hash of (seed, group id, response text).

    Args:
        groups: groups as `load_groups` returns them.
        selector: `random_k`, `best_k`, `diverse_k`, `diverse_best_k`, `filter_then_spread` or `all`.
        k: responses to keep per group. Required, except for `all`, or where `mean_k` or `target_total` is given.
        alpha: exponent of the scores, for `diverse_best_k`.
        similarity: `paper` or `rescaled`, for `diverse_k` and `diverse_best_k`.
        seed: the seed of random choices and of ties.
        n: maximum number of candidates per group. A larger pool is reduced to a random `n`.
        embedder: `lexical`, `sentence-transformers`, a model's name or path, or a function from n strings to an array
            [n, dim]. A function is called once per group, on the group's distinct texts in sorted order, so a vector
            never depends on other groups. A model's vectors come from the cache.
        scorer: a function `scorer(prompt, responses)` that returns N scores, or its name, or a reward model's name or
            path (see `mrt_plugin.scoring.score_groups`). Its scores replace the column `scores`. Of several scorers,
            the first decides. The log reports how well the others agree and how many picks they would change.
        score_cache: the directory of the cache of models' embeddings and scores.
        allocation: `fixed`, or `adaptive`: prompts whose responses differ more keep more.
        allocation_score: adaptive: `diversity`, `length`, or a column (see `mrt_plugin.selection.adaptive`).
        mean_k: adaptive: mean responses per group; by default `k`.
        target_total: adaptive: total responses, instead of `mean_k`.
        min_k: adaptive: minimum responses per group.
        max_k: adaptive: maximum responses per group.
        weights: `column` keeps the column `weights` unchanged; `softmax` computes it from the kept responses' scores.
        weight_temperature: softmax: divides the scores.
        num_proc: number of processes. A model runs in one process, which uses all cores.
        engine: `local`, or `ray` to score, embed and choose on its workers. The picks are the same.

    Raises:
        CacheError: if the cache cannot be used.
        ValueError: if an option is unknown or out of bounds, or if the selector needs scores and there are none.

    Example:

    ```python
    from mrt_plugin import load_groups, select

    chosen = select(load_groups("pool.jsonl"), "diverse_best_k", k=4, alpha=0.75, seed=7)
    ```
    """
    check_options(MultiResponseOptions(weights=weights, weight_temperature=weight_temperature))
    chosen = score_and_select(
        groups,
        selector,
        k=k,
        alpha=alpha,
        similarity=similarity,
        seed=seed,
        n=n,
        embedder=embedder,
        scorer=scorer,
        score_cache=score_cache,
        allocation=allocation,
        allocation_score=allocation_score,
        mean_k=mean_k,
        target_total=target_total,
        min_k=min_k,
        max_k=max_k,
        num_proc=num_proc,
        engine=engine,
    )
    chosen.report.log()
    kept = keep_responses(chosen.groups, chosen.picks)
    return weigh_groups(kept, weight_temperature) if weights == "softmax" else kept


def select_indices(groups: Dataset, selector: str, **options: Any) -> list[list[int]]:
    """Return the responses that `select` keeps: for each group, their indices in the pool, in ascending order.

    Options and errors are those of `select`.
    """
    picks, report = run_selection(groups, selector, **options)
    report.log()
    return picks


def run_selection(groups: Dataset, selector: str, **options: Any) -> tuple[list[list[int]], SelectionReport]:
    """Return the indices of `select_indices` and the report, without logging the report."""
    chosen = score_and_select(groups, selector, **options)
    return chosen.picks, chosen.report


@dataclass(frozen=True)
class Selected:
    """A selection that has not been applied yet."""

    groups: Dataset
    """All groups and responses, with the scores used for the selection."""
    picks: list[list[int]]
    """For each group, the indices of the responses to keep, in ascending order."""
    report: SelectionReport


def score_and_select(
    groups: Dataset,
    selector: str,
    *,
    k: int | None = None,
    alpha: float = 0.25,
    similarity: Similarity = "rescaled",
    seed: int = 0,
    n: int | None = None,
    embedder: str | Callable[[list[str]], Any] = "lexical",
    scorer: Scorer | Sequence[Scorer] | None = None,
    score_cache: str | Path | None = None,
    allocation: AllocationKind = "fixed",
    allocation_score: str = "diversity",
    mean_k: float | None = None,
    target_total: int | None = None,
    min_k: int = 1,
    max_k: int | None = None,
    num_proc: int | None = None,
    engine: Engine = "local",
) -> Selected:
    """Score the groups once, if there is a `scorer`, and choose. Options are those of `select`. Logs no report."""
    check_engine(engine)
    if k is None and not get_selector(selector).keeps_all and mean_k is None and target_total is None:
        raise ValueError(f"selector={selector!r} needs k, the responses to keep per prompt.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r} must be a whole number.")
    check_options(
        MultiResponseOptions(
            selector=selector,
            k=1 if k is None else k,
            n=n,
            alpha=alpha,
            similarity=similarity,
            allocation=allocation,
            mean_k=mean_k,
            target_total=target_total,
            min_k=min_k,
            max_k=max_k,
        )
    )
    scored, others = _scored(groups, scorer, num_proc, score_cache, engine)
    picks, report = _run(
        scored,
        others,
        selector,
        k=k,
        alpha=alpha,
        similarity=similarity,
        seed=seed,
        n=n,
        embedder=embedder,
        score_cache=score_cache,
        adaptive=_adaptive(allocation, allocation_score, k, mean_k, target_total, min_k, max_k),
        num_proc=num_proc,
        engine=engine,
    )
    return Selected(scored, picks, report)


def _scored(
    groups: Dataset,
    scorer: Scorer | Sequence[Scorer] | None,
    num_proc: int | None,
    score_cache: str | Path | None,
    engine: Engine,
) -> tuple[Dataset, dict[str, Dataset]]:
    """Return the groups with the first scorer's scores, and the scores of all scorers if there are several."""
    if scorer is None:
        return groups, {}
    columns = score_columns(groups, scorer, num_proc=num_proc, score_cache=score_cache, engine=engine)
    first = next(iter(columns.values()))
    return with_scores(groups, first), columns if len(columns) > 1 else {}


def _adaptive(
    allocation: str,
    score: str,
    k: int | None,
    mean_k: float | None,
    target_total: int | None,
    min_k: int,
    max_k: int | None,
) -> AdaptiveK | None:
    if allocation == "fixed":
        return None
    if mean_k is None and target_total is None:
        mean_k = k
    return AdaptiveK(score, mean_k, target_total, min_k, max_k)


def _run(
    groups: Dataset,
    scores: dict[str, Dataset],
    selector: str,
    *,
    k: int | None,
    alpha: float,
    similarity: Similarity,
    seed: int,
    n: int | None,
    embedder: str | Callable[[list[str]], Any],
    score_cache: str | Path | None,
    adaptive: AdaptiveK | None,
    num_proc: int | None,
    engine: Engine,
) -> tuple[list[list[int]], SelectionReport]:
    strategy = get_selector(selector)
    columns = _columns(groups)
    if strategy.needs_scores and "scores" not in columns:
        raise ValueError(
            f"selector={selector!r} needs scores, and the groups have none: give a column `scores` with one number "
            "per response, or a `scorer`; or choose random_k or diverse_k."
        )
    used = None
    if strategy.needs_embeddings or (adaptive is not None and adaptive.needs_embeddings):
        used = load_embedder(embedder, score_cache=score_cache)
        if used.prepare is not None and engine == "local":  # on Ray, each worker prepares its own groups
            least = (k or 0) if adaptive is None else 0 if adaptive.needs_embeddings else adaptive.min_k
            used.prepare(_texts(groups, n=n, seed=seed, at_least=least + 1))
    processes = num_proc if used is None or used.forks else None
    remarks: list[str] = []
    told_k = None
    if adaptive is not None:
        allocated = adaptive_k(groups, adaptive, n=n, seed=seed, embedder=used, num_proc=processes, engine=engine)
        remarks.append(allocated.summary())
        told_k = allocated.k
    told = {
        "selector": strategy,
        "options": SelectionOptions(k=k or 0, n=n, alpha=float(alpha), similarity=similarity),
        "seed": seed,
        "embedder": used if strategy.needs_embeddings else None,
    }
    decided = _decide(groups, told, told_k, selector, processes, engine)
    picks: list[list[int]] = decided["picked"][:]
    sizes: list[int] = decided["candidates"][:]
    for name, other in list(scores.items())[1:]:
        first = next(iter(scores))
        remarks.append(rank_agreement(scores[first]["scores"], other["scores"]).summary(first, name))
        if strategy.needs_scores:
            others = _decide(with_scores(groups, other), told, told_k, selector, processes, engine)["picked"][:]
            remarks.append(_changed(picks, others, name, selector))
    report = SelectionReport(
        selector,
        None if strategy.keeps_all or adaptive is not None else k,
        similarity,
        groups=len(groups),
        candidates=sum(sizes),
        kept=sum(map(len, picks)),
        weightless=sum(decided["weightless"][:]),
        left_out=sum(decided["left_out"][:]),
        later_picks=sum(decided["later_picks"][:]),
        zero_gain=sum(decided["zero_gain"][:]),
        remarks=remarks,
    )
    if not strategy.keeps_all:
        wanted = told_k if told_k is not None else [k or 0] * len(sizes)
        report.whole = sum(size <= want for size, want in zip(sizes, wanted, strict=True))
        report.short = sum(size < want for size, want in zip(sizes, wanted, strict=True))
    return picks, report


def _decide(
    groups: Dataset, told: dict[str, Any], k: list[int] | None, selector: str, num_proc: int | None, engine: Engine
) -> Dataset:
    """Return the columns of `DECISION`. `k` holds one K per group."""
    names = [name for name in ("id", "responses", "scores", "weights") if name in groups.column_names]
    wanted = groups.select_columns(names)
    if k is not None:
        wanted = concatenate_datasets(
            [wanted, Dataset.from_dict({"k": k}, features=Features({"k": Value("int64")}))], axis=1
        )
    embedder = told["embedder"]
    embeds = engine == "ray" and embedder is not None and embedder.prepare is not None
    return map_batches(
        wanted,
        embed_and_choose if embeds else choose_batch,
        told,
        DECISION,
        batch_size=BATCH,
        description=f"Selecting ({selector})",
        num_proc=num_proc,
        engine=engine,
        threads=None if embedder is None else embedder.threads(),
    )


def _texts(groups: Dataset, *, n: int | None, seed: int, at_least: int) -> Iterator[list[str]]:
    """Yield the texts of the candidates that will be compared, a batch of groups at a time."""
    names = [name for name in ("id", "responses", "scores", "weights") if name in groups.column_names]
    wanted = groups.select_columns(names)
    for batch in wanted.iter(batch_size(wanted, BATCH)):
        assert isinstance(batch, dict)
        yield candidate_texts(batch, n=n, seed=seed, at_least=at_least)


def _changed(picks: list[list[int]], others: list[list[int]], name: str, selector: str) -> str:
    changed = sum(len(set(ours) - set(theirs)) for ours, theirs in zip(picks, others, strict=True))
    total = max(sum(map(len, picks)), 1)
    return (
        f"With the scores of {name}, {selector} would change {changed:,} of {total:,} picks ({changed / total:.1%})."
    )


def _columns(groups: Dataset) -> list[str]:
    missing = [name for name in ("id", "prompt", "responses") if name not in groups.column_names]
    if missing:
        raise ValueError(f"The groups have no column {' or '.join(missing)}: read them with `load_groups` first.")
    return list(groups.column_names)
