"""Apply a selector to a dataset. The picks are the same for any number of processes, row order and shard."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets

from mrt_plugin.engine import check_engine, map_batches
from mrt_plugin.groups.batches import batch_size
from mrt_plugin.groups.rows import keep_responses
from mrt_plugin.options import Engine, SelectionOptions, check_options, names_of, take_options
from mrt_plugin.scoring.agreement import rank_agreement
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.scoring.scores import score_columns, with_scores
from mrt_plugin.scoring.weights import weigh_groups
from mrt_plugin.selection.adaptive import AdaptiveK, adaptive_k
from mrt_plugin.selection.decide import DECISION, choose_batch, embed_and_choose
from mrt_plugin.selection.pool import Selector, candidate_texts
from mrt_plugin.selection.registry import get_selector
from mrt_plugin.selection.report import SelectionReport

BATCH = 256
"""Number of groups read at a time."""


@take_options(SelectionOptions)
def select(
    groups: Dataset,
    selector: str,
    *,
    k: int | None = None,
    seed: int = 0,
    num_proc: int | None = None,
    engine: Engine = "local",
    **options: Any,
) -> Dataset:
    """Keep K of the N responses of each group, in the pool's order, with their scores and weights.

    A group with N <= K keeps all responses. A response of weight 0 is never kept. The higher score decides ties, then
    a hash of (seed, group id, response text).

    Args:
        groups: groups as `load_groups` returns them.
        selector: `random_k`, `best_k`, `diverse_k`, `diverse_best_k`, `filter_then_spread` or `all`, or your own as
            `package.module:name` or `file.py:name` (see CONTRIBUTING.md).
        k: responses to keep per group. Required, except for `all`, or where `mean_k` or `target_total` is given.
        seed: the seed of random choices and of ties.
        num_proc: number of processes. A model runs in one process, which uses all cores.
        engine: `local`, or `ray` to score, embed and choose on its workers. The picks are the same.
        options: the other fields of `mrt_plugin.options.SelectionOptions`, by name; docs/options.md explains each.
            `embedder` may also be a function from n strings to an array [n, dim]. It is called once per group, on the
            group's distinct texts, so a vector never depends on other groups. `scorer` may also be a
            function `scorer(prompt, responses)` that returns N scores, or a list of scorers; see
            `mrt_plugin.scoring.score_groups`.

    Raises:
        CacheError: if the cache cannot be used.
        TypeError: if there is no option of that name.
        ValueError: if a value is unknown or out of bounds, or if the selector needs scores and there are none.

    Example:

    ```python
    from mrt_plugin import load_groups, select

    chosen = select(load_groups("pool.jsonl"), "diverse_best_k", k=4, alpha=0.75, seed=7)
    ```
    """
    chosen = _select(groups, selector, k=k, seed=seed, num_proc=num_proc, engine=engine, **options)
    chosen.report.log()
    return chosen.apply()


def select_indices(groups: Dataset, selector: str, **options: Any) -> list[list[int]]:
    """Return the responses that `select` keeps: for each group, their indices in the pool, in ascending order.

    Options and errors are those of `select`. Nothing is logged.
    """
    return _select(groups, selector, **options).picks


@dataclass(frozen=True)
class Selected:
    """A selection that has not been applied yet."""

    options: SelectionOptions
    groups: Dataset
    """All groups and responses, with the scores used for the selection."""
    picks: list[list[int]]
    """For each group, the indices of the responses to keep, in ascending order."""
    report: SelectionReport

    def apply(self) -> Dataset:
        """Return the groups with the picked responses, their scores and their weights.

        Raises:
            ValueError: if the weights are computed from scores and there are none.
        """
        kept = keep_responses(self.groups, self.picks)
        return weigh_groups(kept, self.options.weight_temperature) if self.options.weights == "softmax" else kept


def _select(
    groups: Dataset,
    selector: str,
    *,
    k: int | None = None,
    seed: int = 0,
    num_proc: int | None = None,
    engine: Engine = "local",
    **options: Any,
) -> Selected:
    known = names_of(SelectionOptions)
    for name in options:
        if name not in known:
            guess = get_close_matches(name, known, n=1)
            hint = f"did you mean {guess[0]}?" if guess else f"the options are {', '.join(known)}."
            raise TypeError(f"{name} is not an option of a selection: {hint}")
    if k is not None:
        options["k"] = k
    elif not get_selector(selector).keeps_all and options.get("mean_k") is None is options.get("target_total"):
        raise ValueError(f"selector={selector!r} needs k, the responses to keep per prompt.")
    return run_selection(groups, SelectionOptions(selector, **options), seed=seed, num_proc=num_proc, engine=engine)


def run_selection(
    groups: Dataset,
    options: SelectionOptions,
    *,
    seed: int = 0,
    num_proc: int | None = None,
    engine: Engine = "local",
) -> Selected:
    """Score the groups once, if there is a scorer, and choose. Does not log the report.

    Args:
        groups: groups as `load_groups` returns them.
        options: the selection's options. `MultiResponseOptions` and `MultiResponseSFTConfig` have them too.
        seed: the seed of random choices and of ties.
        num_proc: number of processes. A model runs in one process, which uses all cores.
        engine: `local`, or `ray` to score, embed and choose on its workers.

    Raises:
        CacheError, ValueError: as for `select`.

    Example:

    ```python
    from mrt_plugin.options import SelectionOptions

    picks = run_selection(groups, SelectionOptions("best_k", k=2)).picks
    ```
    """
    check_engine(engine)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r} must be a whole number.")
    check_options(options)
    strategy = get_selector(options.selector)
    scores: dict[str, Dataset] = {}
    if options.scorer is not None:
        scores = score_columns(
            groups, options.scorer, num_proc=num_proc, score_cache=options.score_cache, engine=engine
        )
        groups = with_scores(groups, next(iter(scores.values())))
    missing = [name for name in ("id", "prompt", "responses") if name not in groups.column_names]
    if missing:
        raise ValueError(f"The groups have no column {' or '.join(missing)}: read them with `load_groups` first.")
    if strategy.needs_scores and "scores" not in groups.column_names:
        raise ValueError(
            f"selector={options.selector!r} needs scores, and the groups have none: give a column `scores` with one "
            "number per response, or a `scorer`; or choose random_k or diverse_k."
        )
    return _Run(strategy, options, seed, num_proc, engine).select(groups, scores)


class _Run:
    """A selection with its options, its selector and its embedder."""

    def __init__(
        self, strategy: Selector, options: SelectionOptions, seed: int, num_proc: int | None, engine: Engine
    ) -> None:
        self.strategy, self.options, self.seed, self.engine = strategy, options, seed, engine
        self.adaptive: AdaptiveK | None = None
        if options.allocation == "adaptive":
            mean_k = options.k if options.mean_k is None is options.target_total else options.mean_k
            self.adaptive = AdaptiveK(
                options.allocation_score, mean_k, options.target_total, options.min_k, options.max_k
            )
        self.embedder = None
        if strategy.needs_embeddings or (self.adaptive is not None and self.adaptive.needs_embeddings):
            self.embedder = load_embedder(options.embedder, score_cache=options.score_cache)
        self.num_proc = num_proc if self.embedder is None or self.embedder.forks else None

    def select(self, groups: Dataset, scores: dict[str, Dataset]) -> Selected:
        """Choose responses. `scores` holds the scores of every scorer; the groups hold those of the first."""
        options, strategy = self.options, self.strategy
        if self.embedder is not None and self.embedder.prepare is not None and self.engine == "local":
            self.embedder.prepare(self._texts(groups))  # on Ray, each worker prepares its own groups
        remarks: list[str] = []
        allocated = None
        if self.adaptive is not None:
            allocation = adaptive_k(
                groups,
                self.adaptive,
                n=options.n,
                seed=self.seed,
                embedder=self.embedder,
                num_proc=self.num_proc,
                engine=self.engine,
            )
            remarks.append(allocation.summary())
            allocated = allocation.k
        decided = self._decide(groups, allocated)
        picks: list[list[int]] = decided["picked"][:]
        for name, other in list(scores.items())[1:]:
            first = next(iter(scores))
            remarks.append(rank_agreement(scores[first]["scores"], other["scores"]).summary(first, name))
            if strategy.needs_scores:
                others = self._decide(with_scores(groups, other), allocated)["picked"][:]
                remarks.append(_changed(picks, others, name, options.selector))
        sizes: list[int] = decided["candidates"][:]
        report = SelectionReport(
            options.selector,
            None if strategy.keeps_all or allocated is not None else options.k,
            options.similarity,
            groups=len(groups),
            kept=sum(map(len, picks)),
            **{name: sum(decided[name][:]) for name in DECISION if name != "picked"},
            remarks=remarks,
        )
        if not strategy.keeps_all:
            wanted = [options.k] * len(sizes) if allocated is None else allocated
            report.whole = sum(size <= want for size, want in zip(sizes, wanted, strict=True))
            report.short = sum(size < want for size, want in zip(sizes, wanted, strict=True))
        return Selected(options, groups, picks, report)

    def _decide(self, groups: Dataset, k: list[int] | None) -> Dataset:
        """Return the columns of `DECISION`. `k` holds one K per group, unless all have the same."""
        wanted = _read(groups)
        if self.strategy.reads_all:
            wanted = groups.select_columns([name for name in groups.column_names if name != "k"])
        if k is not None:
            each = Dataset.from_dict({"k": k}, features=Features({"k": Value("int64")}))
            wanted = concatenate_datasets([wanted, each], axis=1)
        embedder = self.embedder if self.strategy.needs_embeddings else None
        embeds = self.engine == "ray" and embedder is not None and embedder.prepare is not None
        return map_batches(
            wanted,
            embed_and_choose if embeds else choose_batch,
            {
                "selector": self.strategy,
                "options": SelectionOptions(
                    k=self.options.k,
                    n=self.options.n,
                    alpha=float(self.options.alpha),
                    similarity=self.options.similarity,
                ),
                "seed": self.seed,
                "embedder": embedder,
            },
            DECISION,
            batch_size=BATCH,
            description=f"Selecting ({self.options.selector})",
            num_proc=self.num_proc,
            engine=self.engine,
            threads=None if embedder is None else embedder.threads(),
        )

    def _texts(self, groups: Dataset) -> Iterator[list[str]]:
        """Yield the texts of the candidates that will be compared, a batch of groups at a time."""
        least = self.options.k
        if self.adaptive is not None:
            least = 0 if self.adaptive.needs_embeddings else self.adaptive.min_k
        wanted = _read(groups)
        for batch in wanted.iter(batch_size(wanted, BATCH)):
            assert isinstance(batch, dict)
            yield candidate_texts(batch, n=self.options.n, seed=self.seed, at_least=least + 1)


def _read(groups: Dataset) -> Dataset:
    """Return the columns that a selection reads."""
    return groups.select_columns(
        [name for name in ("id", "responses", "scores", "weights") if name in groups.column_names]
    )


def _changed(picks: list[list[int]], others: list[list[int]], name: str, selector: str) -> str:
    changed = sum(len(set(ours) - set(theirs)) for ours, theirs in zip(picks, others, strict=True))
    total = max(sum(map(len, picks)), 1)
    return (
        f"With the scores of {name}, {selector} would change {changed:,} of {total:,} picks ({changed / total:.1%})."
    )
