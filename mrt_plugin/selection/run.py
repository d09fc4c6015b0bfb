"""Apply a selector to a dataset. The picks are the same for any number of processes, row order and shard."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets

from mrt_plugin.engine import check_engine, map_batches
from mrt_plugin.groups.batches import batch_size
from mrt_plugin.groups.problems import plural
from mrt_plugin.groups.rows import keep_responses
from mrt_plugin.options import Engine, SelectionOptions, check_options, names_of, take_options
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.scoring.scores import agreement_lines, score_columns, weigh_groups, with_scores
from mrt_plugin.selection.allocation import SPREAD, Allocation, allocate, spread_batch
from mrt_plugin.selection.decide import COUNTS, DECISION, choose_batch, embed_first
from mrt_plugin.selection.pool import candidate_texts
from mrt_plugin.selection.registry import get_selector

logger = logging.getLogger(__name__)

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
    chosen = _select(groups, selector, k, {"seed": seed, "num_proc": num_proc, "engine": engine}, options)
    chosen.report.log()
    return chosen.apply()


def select_indices(groups: Dataset, selector: str, *, k: int | None = None, **options: Any) -> list[list[int]]:
    """Return the responses that `select` keeps: for each group, their indices in the pool, in ascending order.

    Options and errors are those of `select`. Nothing is logged.
    """
    how: dict[str, Any] = {name: options.pop(name) for name in ("seed", "num_proc", "engine") if name in options}
    return _select(groups, selector, k, how, options).picks


def _select(groups: Dataset, selector: str, k: int | None, how: dict[str, Any], options: dict[str, Any]) -> "Selected":
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
    return run_selection(groups, SelectionOptions(selector, **options), **how)


@dataclass
class SelectionReport:
    """The counts of one selection. `k` is in words: `k=4`, or `their own k` for groups that differ in it.

    `whole` groups have N <= K and `short` ones N < K. `left_out` responses are beyond n candidates. `later_picks` are
    those after a group's first, for selectors whose picks have gains; `zero_gain` of them have a gain of 0.
    """

    selector: str
    k: str
    similarity: str
    groups: int = 0
    candidates: int = 0
    kept: int = 0
    whole: int = 0
    short: int = 0
    weightless: int = 0
    left_out: int = 0
    later_picks: int = 0
    zero_gain: int = 0
    remarks: list[str] = field(default_factory=list)

    @property
    def zero_gain_share(self) -> float:
        return self.zero_gain / self.later_picks if self.later_picks else 0.0

    def summary(self) -> str:
        responses, groups = plural(self.candidates, "response"), plural(self.groups, "group")
        line = f"{self.selector}: kept {self.kept:,} of {responses} of {groups}"
        if self.whole:
            line += f"; {plural(self.whole, 'pool')} of at most {self.k} kept whole"
        if self.later_picks:
            picks = plural(self.later_picks, "pick")
            line += f"; {self.zero_gain_share:.1%} of {picks} after a group's first gained nothing"
        return line + "."

    def notes(self) -> list[str]:
        counts = (
            (f"pools smaller than {self.k}, kept whole", self.short),
            ("responses of weight 0, never kept", self.weightless),
            ("responses beyond n candidates, left out at random", self.left_out),
        )
        lines = [f"{self.selector}: {words}: {count:,}." for words, count in counts if count]
        if self.zero_gain_share > 0.5:
            hint = " similarity='rescaled' leaves later picks more to gain." if self.similarity == "paper" else ""
            what = f"{self.selector}: {self.zero_gain_share:.0%} of the picks after a group's first gained nothing"
            lines.append(f"{what}: the first ones cover the pool, and the rest went by score, then by chance.{hint}")
        return lines

    def log(self) -> None:
        for line in [*self.remarks, self.summary()]:
            logger.info(line)
        for line in self.notes():
            logger.warning(line)


@dataclass(frozen=True)
class Selected:
    """A selection that has not been applied yet."""

    options: SelectionOptions
    groups: Dataset
    """All groups and responses, with the scores used for the selection."""
    picks: list[list[int]]
    report: SelectionReport

    def apply(self) -> Dataset:
        """Return the groups with the picked responses, their scores and their weights."""
        kept = keep_responses(self.groups, self.picks)
        return weigh_groups(kept, self.options.weight_temperature) if self.options.weights == "softmax" else kept


def run_selection(
    groups: Dataset,
    options: SelectionOptions,
    *,
    seed: int = 0,
    num_proc: int | None = None,
    engine: Engine = "local",
) -> Selected:
    """Score the groups once, if there is a scorer, and choose. Arguments and errors are those of `select`.

    Does not log the report. `options` may have more fields, as `MultiResponseOptions` has.
    """
    check_engine(engine)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r} must be a whole number.")
    check_options(options)
    strategy = get_selector(options.selector)
    scores: dict[str, Dataset] = {}
    compared: list[str] = []
    if options.scorer is not None:
        how: dict[str, Any] = {"num_proc": num_proc, "score_cache": options.score_cache, "engine": engine}
        scores = score_columns(groups, options.scorer, **how)
        compared = list(agreement_lines(groups, scores))
        groups = with_scores(groups, next(iter(scores.values())))
    missing = [name for name in ("id", "prompt", "responses") if name not in groups.column_names]
    if missing:
        raise ValueError(f"The groups have no column {' or '.join(missing)}: read them with `load_groups` first.")
    if strategy.needs_scores and "scores" not in groups.column_names:
        remedy = "give a column `scores` with one number per response, or a `scorer`; or choose random_k or diverse_k"
        raise ValueError(f"selector={options.selector!r} needs scores, and the groups have none: {remedy}.")
    return _Chooser(options, seed, num_proc, engine).select(groups, scores, compared)


class _Chooser:
    """A selection with its selector and its embedder."""

    def __init__(self, options: SelectionOptions, seed: int, num_proc: int | None, engine: Engine) -> None:
        self.options, self.seed, self.engine = options, seed, engine
        self.strategy = get_selector(options.selector)
        self.adaptive = options.allocation == "adaptive"
        self.spread = self.adaptive and options.allocation_score == "diversity"  # needs embeddings
        self.embedder = None
        if self.strategy.needs_embeddings or self.spread:
            self.embedder = load_embedder(options.embedder, score_cache=options.score_cache)
        self.num_proc = num_proc if self.embedder is None or self.embedder.forks else None

    def select(self, groups: Dataset, scores: dict[str, Dataset], remarks: Sequence[str] = ()) -> Selected:
        """Choose responses. `scores` holds the scores of every scorer; the groups hold those of the first."""
        options, strategy = self.options, self.strategy
        if self.embedder is not None and self.embedder.prepare is not None and self.engine == "local":
            self.embedder.prepare(self._texts(groups))  # on Ray, each worker prepares its own groups
        allocation = self._allocate(groups) if self.adaptive else None
        allocated = allocation.k if allocation else None
        remarks = [*([allocation.summary()] if allocation else []), *remarks]
        decided = self._decide(groups, allocated)
        picks: list[list[int]] = decided["picked"][:]
        for name in list(scores)[1:]:
            other = scores[name]
            if strategy.needs_scores:
                others = self._decide(with_scores(groups, other), allocated)["picked"][:]
                changed = sum(len(set(ours) - set(theirs)) for ours, theirs in zip(picks, others, strict=True))
                total = max(sum(map(len, picks)), 1)
                what = f"{changed:,} of {total:,} picks ({changed / total:.1%})"
                remarks.append(f"With the scores of {name}, {options.selector} would change {what}.")
        report = SelectionReport(
            options.selector,
            "their own k" if strategy.keeps_all or allocated is not None else f"k={options.k}",
            options.similarity,
            groups=len(groups),
            kept=sum(map(len, picks)),
            **{name: sum(decided[name][:]) for name in COUNTS},
            remarks=remarks,
        )
        if not strategy.keeps_all:
            spare = np.array(decided["candidates"][:]) - (options.k if allocated is None else np.array(allocated))
            report.whole, report.short = int((spare <= 0).sum()), int((spare < 0).sum())
        return Selected(options, groups, picks, report)

    def _allocate(self, groups: Dataset) -> Allocation:
        """Compute a score for every prompt, then the allocation. The result does not depend on the row order."""
        options, known, name = self.options, groups.column_names, self.options.allocation_score
        if name not in ("diversity", "length", *known):
            what = f"`diversity`, `length`, nor a column of the groups ({', '.join(known)})"
            raise ValueError(f"allocation_score={name!r} is neither {what}.")
        wanted = _read(groups, () if name in ("diversity", "length") else (name,))
        measured = self._map(wanted, spread_batch, SPREAD, "Measuring how responses differ", self.spread, 0)
        limits = {name: getattr(options, name) for name in ("target_total", "mean_k", "min_k", "max_k")}
        if options.mean_k is None is options.target_total:
            limits["mean_k"] = options.k
        return allocate(measured["spread"][:], measured["size"][:], groups["id"][:], **limits)

    def _decide(self, groups: Dataset, k: list[int] | None) -> Dataset:
        """Return the columns of `DECISION`. `k` holds one K per group, unless all have the same."""
        wanted = _read(groups)
        if self.strategy.reads_all:
            wanted = groups.select_columns([name for name in groups.column_names if name != "k"])
        if k is not None:
            each = Dataset.from_dict({"k": k}, features=Features({"k": Value("int64")}))
            wanted = concatenate_datasets([wanted, each], axis=1)
        words, embeds = f"Selecting ({self.options.selector})", self.strategy.needs_embeddings
        return self._map(wanted, choose_batch, DECISION, words, embeds, self.options.k, selector=self.strategy)

    def _map(
        self, groups: Dataset, function: Any, features: Features, words: str, embeds: bool, least: int, **more: Any
    ) -> Dataset:
        """Apply a function to all groups. If it `embeds`, then those with more than `least` candidates."""
        options, embedder = self.options, self.embedder if embeds else None
        read = {name: getattr(options, name) for name in ("k", "n", "similarity", "allocation_score")}
        sent = SelectionOptions(alpha=float(options.alpha), **read)  # can be pickled
        more |= {"options": sent, "seed": self.seed, "embedder": embedder}
        if self.engine == "ray" and embedder is not None and embedder.prepare is not None:
            more |= {"function": function, "least": least}
            function = embed_first
        how: dict[str, Any] = {"num_proc": self.num_proc, "engine": self.engine, "description": words}
        how["threads"] = None if embedder is None else embedder.threads()
        return map_batches(groups, function, more, features, batch_size=BATCH, **how)

    def _texts(self, groups: Dataset) -> Iterator[list[str]]:
        """Yield the texts of the candidates that will be compared, a batch of groups at a time."""
        least = self.options.k
        if self.adaptive:
            least = 0 if self.spread else self.options.min_k
        wanted = _read(groups)
        for batch in wanted.iter(batch_size(wanted, BATCH)):
            assert isinstance(batch, dict)
            yield candidate_texts(batch, n=self.options.n, seed=self.seed, at_least=least + 1)


def _read(groups: Dataset, more: Sequence[str] = ()) -> Dataset:
    """Return the columns that a selection reads."""
    names = dict.fromkeys(("id", "responses", "scores", "weights", *more))
    return groups.select_columns([name for name in names if name in groups.column_names])
