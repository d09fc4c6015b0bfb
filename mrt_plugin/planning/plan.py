"""Plan how many responses to keep, from a pool and a model. Without a model, only describe the data."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from datasets import Dataset
from scipy.stats import sem

from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.options import LossAggregation, PaidLayout
from mrt_plugin.planning.budget import BudgetRow, Costs, best_k_formula, best_row, budget_table, parse_budget
from mrt_plugin.planning.diversity import Diversity, measure_diversity, token_ids, words
from mrt_plugin.planning.documents import (
    DocumentCosts,
    DocumentPlan,
    beginning_of,
    common_length,
    find_documents,
    price_documents,
    rows_of_documents,
)
from mrt_plugin.planning.progress import Progress
from mrt_plugin.planning.variance import Interval, bootstrap_intervals, estimate_components
from mrt_plugin.selection.allocation import allocate

if TYPE_CHECKING:
    from mrt_plugin.encoding import Encoder
    from mrt_plugin.models.log_likelihood import Model
    from mrt_plugin.planning.measure import Measurement

LEVEL = 0.9
PER_DOCUMENT = 8
"""Most prompts of a document that are measured where the model is measured on a sample."""
TIMES = (1, 2, 4, 8)
"""Budgets of the outlook, in ordinary epochs, in which every prompt has one response."""


@dataclass(frozen=True)
class PoolCounts:
    """Numbers of prompts and responses. A repeated response equals an earlier one of its pool."""

    name: str
    prompts: int
    responses: int
    pool_least: int
    pool_median: float
    pool_most: int
    prompts_with_one_response: int
    repeated_responses: int
    prompts_with_repeats: int


@dataclass(frozen=True)
class PromptLoss:
    id: str
    responses: int
    mean: float
    variance: float | None


@dataclass(frozen=True)
class LargestK:
    """Largest K that the budget buys for every prompt, or 0, and by which share its variance exceeds the best's."""

    k: int
    extra: float | None


@dataclass(frozen=True)
class BestRow(BudgetRow):
    k_interval: tuple[int, int] | None


@dataclass(frozen=True)
class BestK(BestRow):
    """Shares by which its variance is below that of K = 1, and would be higher with one vote per prompt."""

    saves: float
    one_vote_per_prompt: float


@dataclass(frozen=True)
class Outlook(BestRow):
    times: int
    budget: float


@dataclass(frozen=True)
class WithoutCopies:
    """The plan with each distinct response counted once, if enough are left. `measured` counts the repeats."""

    measured: int
    v_x: float | None
    v_yx: float | None
    k: int


@dataclass(frozen=True)
class SinglePrompts:
    """Prompts with one response, which the estimates leave out: their mean loss, and that of the others.

    With p their share, they add p·(1-p)·gap² to V_x, or nothing if the gap is within 2 standard errors of 0.
    """

    prompts: int
    mean: float
    others: float
    gap_error: float | None
    adds_to_v_x: float


@dataclass(frozen=True)
class Adaptive:
    """K by group id, with more responses for prompts that vary more, at the same total.

    The ratio divides the responses' part of the variance by that of a fixed K.
    """

    mean_k: int
    prompts: int
    response_variance_ratio: float | None
    allocation: dict[str, int]
    at_lower_limit: int
    at_upper_limit: int
    total: int
    wanted: int


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """What was measured on the model, and the K that follows. Intervals are None with too few prompts."""

    prompts_measured: int
    responses_measured: int
    responses_too_long: int
    max_length: int | None
    nll_per_token: float
    level: float
    prompts_differing: int
    v_x: float
    v_x_interval: Interval | None = None
    v_yx: float
    v_yx_interval: Interval | None = None
    ratio: float
    ratio_interval: Interval | None = None
    rho: float
    rho_interval: Interval | None = None
    per_prompt: list[PromptLoss]
    prompts_sampled: bool
    loss_aggregation: LossAggregation
    layout: PaidLayout
    costs: Costs
    ordinary_epoch: float
    budget: float
    k_star: float
    k_star_interval: Interval | None
    all_prompts: LargestK
    best: BestK
    choices: dict[PaidLayout, list[BudgetRow]]
    outlook: list[Outlook]
    cost_unit: str
    copies: WithoutCopies | None
    single: SinglePrompts | None
    adaptive: Adaptive | None
    documents: DocumentPlan | None
    """The third level; None without documents, or where nothing is shared."""


@dataclass(frozen=True)
class Plan:
    """The result of `make_plan`. `mrt_plugin.planning.plan_report` turns it into sentences, tables and a page."""

    data: PoolCounts
    model: ModelPlan | None
    diversity: Diversity


def make_plan(
    groups: Dataset,
    *,
    model: "Model | None" = None,
    encoder: "Encoder | None" = None,
    budget: str | float = "1x",
    layout: PaidLayout = "shared_prefix",
    loss_aggregation: LossAggregation = "token",
    costs: Costs | None = None,
    max_length: int | None = None,
    max_prompts: int | None = 500,
    embedder: str = "lexical",
    order: int = 2,
    p: float = 0.5,
    seed: int = 0,
    data: str = "data.jsonl",
    progress: Progress = lambda stage, done, total: None,
) -> Plan:
    """Plan a training run on these groups.

    Args:
        groups: groups from `load_groups`.
        model: the model to fine-tune, in its current state. Without it the plan gives no K.
        encoder: the model's encoder; required with a model.
        budget: maximum cost of an epoch. Either a number in the unit of the costs (tokens), or a multiple of an
            ordinary epoch, in which every prompt has one response: "2x".
        layout: the layout that training will use; costs are computed for it.
        loss_aggregation: aggregation of the training loss; the variance of this loss is measured.
        costs: costs C_p of a prompt and C_r of a response, in any unit, for example from `mrt bench`. By default the
            model's token counts.
        max_length: maximum tokens of a prompt with one response; by default the model's limit.
        max_prompts: number of prompts to measure the model on, drawn by a hash of (seed, id); all if None.
        embedder: embedder for redundancy and response diversity.
        order: tokens per n-gram in the prompt diversity.
        p: exponent of the prompt diversity.
        seed: seed of the draws.
        data: name of the data in the YAML block.
        progress: progress callback.

    Raises:
        ValueError: if there are too few responses to measure, all losses are equal, the tokenizer belongs to another
            model, or the budget does not pay for one prompt.

    Example:

    ```python
    from mrt_plugin import load_groups, make_plan
    from mrt_plugin.encoding import Encoder
    from mrt_plugin.planning import advise

    plan = make_plan(load_groups("pool.jsonl"), model=model, encoder=Encoder(tokenizer), budget="4x")
    plan.model.best.k, advise(plan)[0]
    ```
    """
    sizes = [len(responses) for responses in groups["responses"]]
    distinct = [len(set(map(canonical, responses))) for responses in groups["responses"]]
    spread, repeated = (min(sizes), float(np.median(sizes)), max(sizes)), np.subtract(sizes, distinct)
    repeats = (int(repeated.sum()), int((repeated > 0).sum()))
    counts = PoolCounts(data, len(sizes), sum(sizes), *spread, sizes.count(1), *repeats)
    chosen = groups.select(sample_rows(groups["id"], max_prompts, seed))
    tokenize = words if encoder is None else token_ids(encoder.tokenizer)
    diversity = measure_diversity(groups, chosen, embedder, progress, tokenize=tokenize, order=order, p=p)
    if model is None:
        return Plan(counts, None, diversity)

    from mrt_plugin.planning.measure import measure, token_costs

    assert encoder is not None, "a model needs its encoder"
    found = measure(model, encoder, chosen, max_length=max_length, progress=progress)
    losses = found.losses(loss_aggregation)
    estimate, intervals = estimate_components(losses), bootstrap_intervals(losses, level=LEVEL, seed=seed)
    ratio = None if intervals is None else intervals.ratio
    paid = replace(costs or token_costs([group.responses for group in found.groups], layout), layout=layout)
    ordinary = len(sizes) * paid.of_prompt(1)
    amount = parse_budget(budget, ordinary)

    def table(
        amount: float, parts: tuple[float, float] = (estimate.v_x, estimate.v_yx), **other: Any
    ) -> list[BudgetRow]:
        own: dict[str, Any] = {"costs": paid, "pool_sizes": sizes, "loss_aggregation": loss_aggregation}
        return budget_table(*parts, budget=amount, **own | other)

    def best_of(amount: float) -> dict[str, Any]:
        ends = None
        if ratio is not None:
            # V_x and V_{y|x} matter only up to a common factor. The best K can only rise as their ratio falls.
            parts = ((1.0, 0.0) if end == math.inf else (end, 1.0) for end in (ratio.high, ratio.low))
            ends = tuple(best_row(table(amount, part)).k for part in parts)
        return asdict(best_row(table(amount))) | {"k_interval": ends}

    rows, best = table(amount), BestRow(**best_of(amount))
    every = [row for row in rows if row.prompts == len(sizes)]
    saves = -_more(best.variance, rows[0].variance)
    one_vote = _more(table(amount, loss_aggregation="prompt")[best.k - 1].variance, best.variance)
    made = ModelPlan(
        prompts_measured=len(losses),
        responses_measured=sum(map(len, losses)),
        responses_too_long=found.left_out,
        max_length=found.max_length,
        nll_per_token=found.nll_per_token,
        level=LEVEL,
        prompts_differing=estimate.differing,
        v_x=estimate.v_x,
        v_yx=estimate.v_yx,
        ratio=estimate.ratio,
        rho=estimate.rho,
        per_prompt=[
            PromptLoss(group.id, len(row), float(row.mean()), float(row.var(ddof=1)) if len(row) > 1 else None)
            for group, row in zip(found.groups, losses, strict=True)
        ],
        prompts_sampled=len(chosen) < len(groups),
        loss_aggregation=loss_aggregation,
        layout=layout,
        costs=paid,
        ordinary_epoch=ordinary,
        budget=amount,
        k_star=best_k_formula(estimate.ratio, paid),
        k_star_interval=None if ratio is None else Interval(*(best_k_formula(end, paid) for end in ratio[::-1])),
        all_prompts=LargestK(every[-1].k, _more(every[-1].variance, best.variance)) if every else LargestK(0, None),
        best=BestK(**vars(best), saves=saves, one_vote_per_prompt=one_vote),
        choices={name: table(amount, costs=replace(paid, layout=name)) for name in get_args(PaidLayout)},
        outlook=[Outlook(**best_of(times * ordinary), times=times, budget=times * ordinary) for times in TIMES],
        cost_unit="tokens" if costs is None else "the unit of the costs given",
        copies=_without_copies(found, distinct, paid, amount, loss_aggregation),
        single=compare_single(losses),
        adaptive=estimate_adaptive(found, loss_aggregation, best.k, seed),
        documents=None
        if layout == "expanded"
        else _plan_documents(
            groups, model, encoder, found, paid, amount, loss_aggregation, max_length, max_prompts, seed, progress
        ),
        **({} if intervals is None else {f"{name}_interval": ends for name, ends in vars(intervals).items()}),
    )
    return Plan(counts, made, diversity)


def _plan_documents(
    groups: Dataset,
    model: "Model",
    encoder: "Encoder",
    found: "Measurement",
    paid: Costs,
    budget: float,
    aggregation: LossAggregation,
    max_length: int | None,
    max_prompts: int | None,
    seed: int,
    progress: Progress,
) -> DocumentPlan | None:
    """Plan the third level; None if fewer than two documents have two prompts that can be measured.

    Where the model was measured on a sample, it is measured on more prompts: up to `PER_DOCUMENT` of each of as many
    documents, drawn at random, as `max_prompts` allows.
    """
    from mrt_plugin.planning.measure import Measurement, measure, token_costs

    documents = rows_of_documents(find_documents(groups, encoder, progress))
    if len(documents) < 2:
        return None
    names = groups["id"]
    if max_prompts is not None and max_prompts < len(groups):
        drawn = [
            [members[place] for place in sample_rows([names[row] for row in members], PER_DOCUMENT, seed)]
            for members in documents
        ]
        order = sample_rows([names[members[0]] for members in documents], max_prompts // PER_DOCUMENT + 1, seed)
        measured = [drawn[place] for place in order]
    else:
        measured = documents
    known = {group.id for group in found.groups}
    missing = sorted(row for members in measured for row in members if names[row] not in known)
    if max_prompts is not None and max_prompts < len(groups) and missing:
        more = measure(model, encoder, groups.select(missing), max_length=max_length, progress=progress)
        found = Measurement([*found.groups, *more.groups], found.left_out + more.left_out, found.max_length)
    losses = {group.id: (group, row) for group, row in zip(found.groups, found.losses(aggregation), strict=True)}
    usable = [[losses[names[row]] for row in members if names[row] in losses] for members in measured]
    usable = [[(group, row) for group, row in members if len(row) > 1] for members in usable]
    usable = [members for members in usable if len(members) > 1]
    if len(usable) < 2:
        return None
    pairs = [[group.responses for group, _ in members] for members in usable]
    tokens = token_costs([responses for prompts in pairs for responses in prompts], paid.layout)
    every = token_costs([group.responses for group in found.groups], paid.layout)
    document = float(np.mean([common_length([beginning_of(own[0][0]) for own in prompts]) for prompts in pairs]))
    # In the unit of the costs: tokens, or one that the user measured for the mean prompt and response.
    prompt_unit, response_unit = paid.prompt / every.prompt, paid.response / every.response
    costs = DocumentCosts(
        document * prompt_unit, max(tokens.prompt - document, 1.0) * prompt_unit, tokens.response * response_unit
    )
    parts = [[row for _, row in members] for members in usable]
    return price_documents(
        parts,
        costs,
        document_sizes=[len(members) for members in documents],
        pool_sizes=[len(groups[row]["responses"]) for members in documents for row in members],
        budget=budget,
        loss_aggregation=aggregation,
        level=LEVEL,
        seed=seed,
    )


def random_of(name: str, seed: int, what: bytes) -> np.random.Generator:
    """Return a generator that depends only on a group's id, the seed and the purpose."""
    return np.random.default_rng(int.from_bytes(digest(what, str(seed).encode(), name.encode()), "little"))


def sample_rows(names: Sequence[str], count: int | None, seed: int, what: bytes = b"plan") -> list[int]:
    """Draw `count` rows by a hash of (purpose, seed, id), and return them in rising order; all if there are fewer."""
    keys = [digest(what, str(seed).encode(), name.encode()) for name in names]
    return sorted(sorted(range(len(keys)), key=keys.__getitem__)[:count])


def _without_copies(
    found: "Measurement", distinct: Sequence[int], costs: Costs, amount: float, aggregation: LossAggregation
) -> WithoutCopies | None:
    """Compute the plan with each distinct response of a pool counted once; None if no response was measured twice."""
    losses = found.losses(aggregation, distinct=True)
    repeated = sum(len(group.nll) for group in found.groups) - sum(map(len, losses))
    if not repeated:
        return None
    if sum(len(row) > 1 for row in losses) < 2:
        return WithoutCopies(repeated, None, None, 1)
    one = estimate_components(losses)
    rows = budget_table(one.v_x, one.v_yx, costs, pool_sizes=distinct, budget=amount, loss_aggregation=aggregation)
    return WithoutCopies(repeated, one.v_x, one.v_yx, best_row(rows).k)


def compare_single(losses: Sequence[np.ndarray]) -> SinglePrompts | None:
    single = np.array([row[0] for row in losses if len(row) == 1])
    others = np.array([row.mean() for row in losses if len(row) > 1])
    if not len(single):
        return None
    gap, share = float(single.mean() - others.mean()), len(single) / len(losses)
    error = math.hypot(sem(single), sem(others)) if len(single) > 1 else None
    adds = share * (1 - share) * gap**2 if error is not None and abs(gap) > 2 * error else 0.0
    return SinglePrompts(len(single), float(single.mean()), float(others.mean()), error, adds)


def _more(variance: float, than: float) -> float:
    """Return the share by which a variance exceeds another; 0 if the other is 0."""
    return variance / than - 1 if than else 0.0


def estimate_adaptive(found: "Measurement", aggregation: LossAggregation, best_k: int, seed: int) -> Adaptive | None:
    """Estimate the gain from giving more responses to prompts that vary more; None if the pools are too small.

    One half of each pool guides the allocation and the other judges it: on one half, noise would look like a gain.
    """
    rows = []
    for group, losses in zip(found.groups, found.losses(aggregation), strict=True):
        if len(losses) >= 4:
            order = random_of(group.id, seed, b"halves").permutation(len(losses))
            halves = [float(losses[order[start::2]].var(ddof=1)) for start in (0, 1)]
            rows.append((group.id, len(losses), float(losses.var(ddof=1)), *halves))
    if len(rows) < 10:
        return None
    names, sizes, variances, one, other = zip(*rows, strict=True)
    mean_k = max(best_k, 2)
    fixed = spread = 0.0
    for guide, judge in ((one, other), (other, one)):
        fixed += float(np.divide(judge, allocate(guide, sizes, names, mean_k=mean_k, power=0).k).sum())
        spread += float(np.divide(judge, allocate(guide, sizes, names, mean_k=mean_k).k).sum())
    final, ratio = allocate(variances, sizes, names, mean_k=mean_k), spread / fixed if fixed else None
    counts = (final.at_least, final.at_most, final.total, final.wanted)
    return Adaptive(mean_k, len(names), ratio, dict(zip(names, final.k, strict=True)), *counts)
