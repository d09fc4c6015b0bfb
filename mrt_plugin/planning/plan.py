"""Plan how many responses to keep, from a pool and a model. Without a model, only describe the data."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.options import LossAggregation, PaidLayout
from mrt_plugin.planning.advice import advise, cannot_know, yaml_block
from mrt_plugin.planning.budget import Choice, Costs, best_choice, best_k_formula, choices, parse_budget
from mrt_plugin.planning.diversity import (
    Tokenize,
    effective_k,
    prompt_diversity,
    prompt_redundancy,
    prompt_text,
    response_diversity,
    words,
)
from mrt_plugin.planning.variance import (
    Interval,
    Intervals,
    VarianceComponents,
    bootstrap_intervals,
    estimate_components,
)
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.selection.allocation import allocate

if TYPE_CHECKING:
    from mrt_plugin.encoding import Encoder
    from mrt_plugin.models.log_likelihood import Model
    from mrt_plugin.planning.measure import Measurement

LEVEL = 0.9
TIMES = (1, 2, 4, 8)
"""Budgets shown in the outlook, in multiples of an ordinary epoch, in which every prompt has one response."""
LAYOUTS: tuple[PaidLayout, ...] = ("shared_prefix", "expanded")

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the total number of steps."""


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
) -> dict[str, Any]:
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

    Returns:
        JSON-ready: `data`, `diversity`, `model` (None without a model), `advice` and `cannot_know` (sentences), `yaml`
        (None without a model).

    Raises:
        ValueError: if there are too few responses to measure, all losses are equal, the tokenizer belongs to another
            model, or the budget does not pay for one prompt.

    Example:

    ```python
    from mrt_plugin import load_groups, make_plan
    from mrt_plugin.encoding import Encoder

    plan = make_plan(load_groups("pool.jsonl"), model=model, encoder=Encoder(tokenizer), budget="4x")
    plan["model"]["best"]["k"], plan["advice"][0]
    ```
    """
    sizes = [len(responses) for responses in groups["responses"]]
    distinct = [len(set(map(canonical, responses))) for responses in groups["responses"]]
    plan: dict[str, Any] = {"data": describe_data(data, sizes, distinct), "model": None}
    tokenize: Tokenize = words
    if encoder is not None:
        tokenizer = encoder.tokenizer

        def tokenize(text: str) -> Sequence[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return ids

    chosen = sample_prompts(groups, max_prompts, seed)
    plan["diversity"] = describe_diversity(groups, chosen, tokenize, embedder, order, p, progress)
    plan["diversity"]["tokens"] = "words" if encoder is None else "the model's tokens"
    if model is not None:
        from mrt_plugin.planning.measure import measure

        assert encoder is not None, "a model needs its encoder"
        found = measure(
            model,
            encoder,
            chosen,
            max_length=max_length,
            progress=lambda done, total: progress("losses of responses", done, total),
        )
        losses = found.losses(loss_aggregation)
        estimate, intervals = estimate_components(losses), bootstrap_intervals(losses, level=LEVEL, seed=seed)
        ratio = None if intervals is None else intervals.ratio
        used = costs or found.costs(layout)
        paid = Costs(used.prompt, used.response, layout)
        amount = parse_budget(budget, len(sizes) * paid.of_prompt(1))
        plan["model"] = describe_model(found, losses, estimate, intervals) | {
            "prompts_sampled": len(chosen) < len(groups),
            "loss_aggregation": loss_aggregation,
            **weigh_budgets(estimate, ratio, sizes, paid, amount, loss_aggregation),
            "cost_unit": "tokens" if costs is None else "the unit of the costs given",
            "copies": describe_copies(found, distinct, paid, amount, loss_aggregation),
            "single": describe_single(losses),
        }
        plan["model"]["adaptive"] = describe_adaptive(found, loss_aggregation, plan["model"]["best"]["k"], seed)
    plan["advice"] = advise(plan)
    plan["cannot_know"] = cannot_know(plan)
    plan["yaml"] = yaml_block(plan)
    return plan


def describe_data(name: str, sizes: Sequence[int], distinct: Sequence[int]) -> dict[str, Any]:
    """Count prompts and responses. `distinct` gives the number of distinct responses of each prompt."""
    return {
        "name": name,
        "prompts": len(sizes),
        "responses": sum(sizes),
        "pool_least": min(sizes),
        "pool_median": float(np.median(sizes)),
        "pool_most": max(sizes),
        "prompts_with_one_response": sum(size == 1 for size in sizes),
        "repeated_responses": sum(sizes) - sum(distinct),
        "prompts_with_repeats": sum(kinds < size for kinds, size in zip(distinct, sizes, strict=True)),
    }


def sample_prompts(groups: Dataset, count: int | None, seed: int) -> Dataset:
    """Draw `count` groups by a hash of (seed, id) and keep the data's order. Return all groups if there are fewer."""
    if count is None or count >= len(groups):
        return groups
    keys = [digest(b"plan", str(seed).encode(), name.encode()) for name in groups["id"]]
    return groups.select(sorted(sorted(range(len(keys)), key=keys.__getitem__)[:count]))


def describe_diversity(
    groups: Dataset,
    chosen: Iterable[Mapping[str, Any]],
    tokenize: Tokenize,
    embedder: str,
    order: int,
    p: float,
    progress: Progress,
) -> dict[str, Any]:
    """Measure the prompt diversity of all groups, and redundancy and response diversity of the `chosen` groups."""
    used = load_embedder(embedder)
    prompts = [prompt_text(prompt) for prompt in groups["prompt"]]
    rows = list(chosen)
    spread = []
    for number, row in enumerate(rows):
        spread.append(response_diversity(row["responses"], used))
        progress("response diversity", number + 1, len(rows))
    known = [value for value in spread if not math.isnan(value)]
    mean = float(np.mean(known)) if known else None
    most = max(len(row["responses"]) for row in rows)
    some = [prompt_text(row["prompt"]) for row in rows]
    return {
        "embedder": used.name,
        "prompt": asdict(prompt_diversity(prompts, tokenize=tokenize, order=order, p=p)),
        "redundancy": asdict(prompt_redundancy(some, used)) if len(some) > 1 else None,
        "response_diversity": mean,
        "effective_k": [{"k": k, "k_eff": effective_k(k, 1 - mean)} for k in range(1, most + 1) if mean is not None],
    }


def describe_model(
    found: "Measurement", losses: Sequence[np.ndarray], estimate: VarianceComponents, intervals: Intervals | None
) -> dict[str, Any]:
    """Report the variance components for this model, with their intervals (None with too few prompts)."""
    return {
        "prompts_measured": len(losses),
        "responses_measured": sum(map(len, losses)),
        "responses_too_long": found.left_out,
        "max_length": found.max_length,
        "nll_per_token": found.nll_per_token,
        "level": LEVEL,
        "prompts_differing": estimate.differing,
        "v_x": estimate.v_x,
        "v_x_interval": intervals and _pair(intervals.v_x),
        "v_yx": estimate.v_yx,
        "v_yx_interval": intervals and _pair(intervals.v_yx),
        "ratio": _finite(estimate.ratio),
        "ratio_interval": intervals and _pair(intervals.ratio),
        "rho": estimate.rho,
        "rho_interval": intervals and _pair(intervals.rho),
        "per_prompt": [
            {
                "id": group.id,
                "responses": len(values),
                "mean": float(values.mean()),
                "variance": float(values.var(ddof=1)) if len(values) > 1 else None,
            }
            for group, values in zip(found.groups, losses, strict=True)
        ],
    }


def describe_copies(
    found: "Measurement", distinct: Sequence[int], costs: Costs, amount: float, aggregation: LossAggregation
) -> dict[str, Any] | None:
    """Compute the plan with each distinct response of a pool counted once; None if no response was measured twice.

    The text does not show whether a repeated response was drawn twice or copied. So the plan reports both cases.
    """
    once = found.distinct()
    losses = once.losses(aggregation)
    repeated = sum(len(group.nll) for group in found.groups) - sum(map(len, losses))
    if not repeated:
        return None
    if sum(len(row) > 1 for row in losses) < 2:
        return {"measured": repeated, "v_x": None, "v_yx": None, "k": 1}
    estimate = estimate_components(losses)
    rows = choices(
        estimate.v_x, estimate.v_yx, costs, pool_sizes=distinct, budget=amount, loss_aggregation=aggregation
    )
    return {"measured": repeated, "v_x": estimate.v_x, "v_yx": estimate.v_yx, "k": best_choice(rows).k}


def describe_single(losses: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """Compare the prompts with one response, which the estimates leave out, with the others; None without them.

    `adds_to_v_x` is the variance that the gap between the mean losses of the two kinds adds to V_x over all prompts:
    p·(1-p)·gap², with p the share of prompts with one response. It is 0 if the gap is within 2 standard errors of 0.
    """
    single = np.array([row[0] for row in losses if len(row) == 1])
    others = np.array([row.mean() for row in losses if len(row) > 1])
    if not len(single):
        return None
    gap, share = float(single.mean() - others.mean()), len(single) / len(losses)
    known = len(single) > 1
    error = math.sqrt(single.var(ddof=1) / len(single) + others.var(ddof=1) / len(others)) if known else None
    clear = error is not None and abs(gap) > 2 * error
    return {
        "prompts": len(single),
        "mean": float(single.mean()),
        "others": float(others.mean()),
        "gap_error": error,
        "adds_to_v_x": share * (1 - share) * gap**2 if clear else 0.0,
    }


def weigh_budgets(
    estimate: VarianceComponents,
    ratio: Interval | None,
    sizes: Sequence[int],
    costs: Costs,
    amount: float,
    aggregation: LossAggregation,
) -> dict[str, Any]:
    """Compute k* (the optimum over real numbers) and the best integer K, under the budget and under other budgets.

    `choices` lists every K for both layouts.
    """
    ordinary = len(sizes) * costs.of_prompt(1)

    def weigh(
        v_x: float,
        v_yx: float,
        amount: float = amount,
        layout: PaidLayout = costs.layout,
        votes: LossAggregation = aggregation,
    ) -> list[Choice]:
        paid = Costs(costs.prompt, costs.response, layout)
        return choices(v_x, v_yx, paid, pool_sizes=sizes, budget=amount, loss_aggregation=votes)

    def best(amount: float) -> tuple[list[Choice], Choice, list[int] | None]:
        rows = weigh(estimate.v_x, estimate.v_yx, amount)
        if ratio is None:
            return rows, best_choice(rows), None
        ends = [best_choice(weigh(*_components(end), amount)).k for end in (ratio.high, ratio.low)]
        return rows, best_choice(rows), ends

    rows, chosen, interval = best(amount)
    outlook = []
    for times in TIMES:
        _, at, ends = best(times * ordinary)
        outlook.append({"times": times, "budget": times * ordinary, **asdict(at), "k_interval": ends})
    one_vote = weigh(estimate.v_x, estimate.v_yx, votes="prompt")[chosen.k - 1]
    return {
        "layout": costs.layout,
        "costs": {"prompt": costs.prompt, "response": costs.response},
        "ordinary_epoch": ordinary,
        "budget": amount,
        "k_star": _finite(best_k_formula(estimate.ratio, costs)),
        "k_star_interval": ratio and [_finite(best_k_formula(end, costs)) for end in (ratio.high, ratio.low)],
        "all_prompts": _all_prompts(rows, chosen, len(sizes)),
        "best": {
            **asdict(chosen),
            "k_interval": interval,
            "saves": -_more(chosen.variance, rows[0].variance),
            "one_vote_per_prompt": _more(one_vote.variance, chosen.variance),
        },
        "choices": {
            layout: [
                {**asdict(row), "variance": _finite(row.variance)}
                for row in weigh(estimate.v_x, estimate.v_yx, layout=layout)
            ]
            for layout in LAYOUTS
        },
        "outlook": outlook,
    }


def _more(variance: float, than: float) -> float:
    """Return the share by which a variance exceeds another; 0 if the other is 0."""
    return variance / than - 1 if than else 0.0


def _all_prompts(rows: Sequence[Choice], best: Choice, owned: int) -> dict[str, Any]:
    """Return the largest K that the budget buys for every prompt owned (0 if none).

    `extra` is the share by which its variance exceeds the minimum.
    """
    whole = [row for row in rows if row.prompts == owned]
    if not whole:
        return {"k": 0, "extra": None}
    return {"k": whole[-1].k, "extra": _more(whole[-1].variance, best.variance)}


def describe_adaptive(
    found: "Measurement", aggregation: LossAggregation, best_k: int, seed: int
) -> dict[str, Any] | None:
    """Estimate the gain from giving more responses to prompts that vary more, at the same total.

    Returns None if the pools are too small. The estimate is cross-fitted: one half of each pool measures how much a
    prompt varies, the other half evaluates the allocation. If the same responses did both, noise alone would look
    like a gain.
    """
    halves: list[list[np.ndarray]] = [[], []]
    names, sizes = [], []
    for group, losses in zip(found.groups, found.losses(aggregation), strict=True):
        if len(losses) < 4:
            continue
        state = int.from_bytes(digest(b"halves", str(seed).encode(), group.id.encode()), "little")
        order = np.random.default_rng(state).permutation(len(losses))
        halves[0].append(losses[order[::2]])
        halves[1].append(losses[order[1::2]])
        names.append(group.id)
        sizes.append(len(losses))
    if len(names) < 10:
        return None
    mean_k = max(best_k, 2)
    fixed = spread = 0.0
    for guide, judge in (halves, halves[::-1]):
        scores = [float(half.var(ddof=1)) for half in guide]
        truth = [float(half.var(ddof=1)) for half in judge]
        same = allocate(scores, sizes, names, mean_k=mean_k, power=0)
        given = allocate(scores, sizes, names, mean_k=mean_k)
        fixed += sum(value / k for value, k in zip(truth, same.k, strict=True))
        spread += sum(value / k for value, k in zip(truth, given.k, strict=True))
    whole = [np.concatenate(pair) for pair in zip(*halves, strict=True)]
    final = allocate([float(values.var(ddof=1)) for values in whole], sizes, names, mean_k=mean_k)
    return {
        "mean_k": mean_k,
        "prompts": len(names),
        "response_variance_ratio": spread / fixed if fixed else None,
        "allocation": dict(zip(names, final.k, strict=True)),
        "at_lower_limit": final.at_least,
        "at_upper_limit": final.at_most,
        "total": final.total,
        "wanted": final.wanted,
    }


def _components(ratio: float) -> tuple[float, float]:
    """Return V_x and V_{y|x}, up to a common factor, for a ratio V_x / V_{y|x} that may be infinite."""
    return (1.0, 0.0) if ratio == math.inf else (ratio, 1.0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pair(interval: Interval) -> list[float | None]:
    return [_finite(interval.low), _finite(interval.high)]
