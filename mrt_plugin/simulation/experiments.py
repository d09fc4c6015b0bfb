"""Experiments 1 to 6 of arXiv 2606.00544, in a world where the truth is known. Experiment 7 is in `tokens`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from mrt_plugin.planning.budget import Costs, best_k_formula, best_row, budget_table
from mrt_plugin.planning.diversity import effective_k
from mrt_plugin.planning.fit import fit_inverse_k
from mrt_plugin.planning.variance import bootstrap_intervals, estimate_components
from mrt_plugin.simulation import density, world
from mrt_plugin.simulation.density import Densities, output_gradients, true_nll
from mrt_plugin.simulation.results import (
    AtStep,
    Bin,
    BridgeFound,
    BudgetFound,
    BySelectorFound,
    Components,
    GradientError,
    GradientsFound,
    Line,
    LotteryFound,
    OneDataset,
    PublishedGradients,
    SelectorGradients,
    VarianceFound,
)
from mrt_plugin.simulation.world import SELECTORS

Step = Callable[[int, int], object]
"""Called with the steps of an experiment that ended, and with their number."""

POOL = 32
PAPER_SEED = 42
"""PyTorch seed of the paper's networks, and NumPy seed of the prompts of its gradient experiment."""

COSTS, BUDGET = Costs(prompt=4, response=1), 400
BUDGET_SELECTORS = ("random_k", "diverse_best_k", "filter_then_spread")
BUDGET_SEED, BUDGET_SAMPLE = 42 + 7777, 300
"""PyTorch seed of the network, and number of prompts, that the paper measures V_x and V_{y|x} on for its budget."""
LOOK = (5, 120)
"""Interval and last step of the NLL measurements. All networks reach their best NLL before step 120."""

PUBLISHED_GRADIENTS = {
    "random_k": PublishedGradients(emse=0.350, cosine=0.626),
    "best_k": PublishedGradients(emse=0.569, cosine=-0.096),
    "filter_then_spread": PublishedGradients(emse=0.132, cosine=0.658),
}
BINS = 15


def silent(done: int, total: int) -> None: ...


def variance(seed: int = 0, *, repeats: int = 2000, progress: Step = silent) -> VarianceFound:
    """Compare the variance of a loss estimate at each K, on 100 prompts, with the formula and the true components.

    The loss is the squared error of an untrained network. `one_dataset` is what `mrt plan` would estimate.
    """
    prompts, ks = 100, (1, 2, 4, 8, 16, 32)
    random = np.random.default_rng([seed, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PAPER_SEED)
        layers = [nn.Linear(world.DIMENSION, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)]
    network = nn.Sequential(*layers).double().requires_grad_(False)
    x = world.draw_prompts(200_000, random)
    nodes, weights = world.quadrature(8)  # exact up to degree 15; the square of a loss is a polynomial of degree 4
    losses = (network(torch.tensor(x)).numpy() - world.centre(x)[:, None] - nodes) ** 2
    means = losses @ weights
    v_x, v_yx = float(means.var(ddof=1)), float((losses**2 @ weights - means**2).mean())

    def draw_losses(count: int) -> np.ndarray:
        x = world.draw_prompts(prompts, random)
        responses, _ = world.draw_responses(x, count, random)
        return (network(torch.tensor(x)).numpy() - responses) ** 2

    estimates = np.empty((repeats, len(ks)))
    for number, row in enumerate(estimates):
        losses = draw_losses(max(ks))
        row[:] = [losses[:, :k].mean() for k in ks]
        progress(number + 1, repeats)
    measured = estimates.var(axis=0, ddof=1)
    one = list(draw_losses(8))
    found, intervals = estimate_components(one), bootstrap_intervals(one, seed=seed)
    assert intervals is not None, "100 prompts are enough for an interval"
    fit = fit_inverse_k(ks, measured.tolist())
    return VarianceFound(
        prompts=prompts,
        repeats=repeats,
        v_x=v_x,
        v_yx=v_yx,
        k=ks,
        variance=measured.tolist(),
        variance_error=(measured * np.sqrt(2 / (repeats - 1))).tolist(),
        predicted=[(v_x + v_yx / k) / prompts for k in ks],
        fit=Line(fit.a, fit.b, fit.r_squared),
        one_dataset=OneDataset(found.v_x, intervals.v_x, found.v_yx, intervals.v_yx),
    )


def budget(seed: int = 0, *, repeats: int = 12, steps: int = 400, progress: Step = silent) -> BudgetFound:
    """Spend one budget on more prompts or more responses, and measure the variance and the trained NLL at each K.

    The NLL is measured at each network's best step and, as in the paper, at the last, where all have overfitted.
    """
    ks = (1, 2, 4, 6, 8, 12, 16)
    random = np.random.default_rng([seed, 2])
    at_start = _density_components(random)
    rows = budget_table(at_start.v_x, at_start.v_yx, COSTS, pool_sizes=[POOL] * BUDGET, budget=BUDGET)
    prompts_at = {row.k: row.prompts for row in rows}
    prompts, pools = world.draw_sets(repeats, max(prompts_at.values()), POOL, random)
    test = world.draw_prompts(200, random)
    nll = np.empty((2, len(BUDGET_SELECTORS), len(ks), repeats))
    curve: list[np.ndarray] = []

    def watch(step: int, model: Densities) -> None:
        if step == steps or (step % LOOK[0] == 0 and step <= LOOK[1]):
            curve.append(true_nll(model, test))

    for place, k in enumerate(ks):
        n = prompts_at[k]
        curve.clear()
        _train(BUDGET_SELECTORS, prompts[:, :n], pools[:, :n], k, random, steps=steps, watch=watch)
        progress(place + 1, len(ks))
        nll[:, :, place] = np.reshape([curve[-1], np.min(curve, axis=0)], (2, -1, repeats))
    last, best = (_at_step(table, random) for table in nll)
    return BudgetFound(
        costs=COSTS,
        budget=BUDGET,
        repeats=repeats,
        steps=steps,
        components=at_start,
        k_star=best_k_formula(at_start.v_x / at_start.v_yx, COSTS),
        integer_best_k=best_row(rows).k,
        rows=rows,
        k=ks,
        prompts=[prompts_at[k] for k in ks],
        pairs=[k * prompts_at[k] for k in ks],
        last=last,
        best=best,
    )


def _at_step(nll: np.ndarray, random: np.random.Generator) -> AtStep:
    """Draw the repeats of an NLL table [selectors, ks, repeats] again, and count how often each K is the best."""
    _, ks, repeats = nll.shape
    shares: dict[str, list[float]] = {}
    for name, table in zip(BUDGET_SELECTORS, nll, strict=True):
        chosen = random.integers(repeats, size=(1000, repeats))
        winners = table[:, chosen].mean(axis=2).argmin(axis=0)
        shares[name] = (np.bincount(winners, minlength=ks) / len(chosen)).tolist()
    return AtStep(shares, dict(zip(BUDGET_SELECTORS, nll.tolist(), strict=True)))


def _train(
    selectors: Sequence[str], prompts: np.ndarray, pools: np.ndarray, k: int, random: np.random.Generator, **how: Any
) -> tuple[np.ndarray, Densities]:
    """Train a network per selector and set on the answers kept, and return the prompts [networks, n, 5] of each."""
    kept = [
        np.take_along_axis(y, world.choose(name, y, world.rewards(x, y), k, random), 1)
        for name in selectors
        for x, y in zip(prompts, pools, strict=True)
    ]
    data = np.tile(prompts, (len(selectors), 1, 1))
    return data, density.train(data, np.stack(kept), random.integers(2**31, size=len(data)).tolist(), **how)


def _density_components(random: np.random.Generator) -> Components:
    """Measure V_x and V_{y|x} at the paper's untrained network, and their standard errors with 300 prompts."""
    x = world.draw_prompts(20_000, random)
    nodes, weights = world.quadrature(8)
    outputs = Densities.initialised([BUDGET_SEED]).outputs(torch.tensor(x, dtype=torch.float32)[None])[0].double()
    losses = density.output_nll(outputs, torch.tensor(world.centre(x)[:, None] + nodes)).numpy()
    means = losses @ weights
    within = (losses - means[:, None]) ** 2 @ weights
    x_error, yx_error = (part.std() / np.sqrt(BUDGET_SAMPLE) for part in ((means - means.mean()) ** 2, within))
    return Components(float(means.var(ddof=1)), float(within.mean()), float(x_error), float(yx_error))


def _mode_errors(model: Densities, prompts: np.ndarray) -> np.ndarray:
    """Compute the probability on the wrong mode, [M]: the total variation distance to 1/3 each, over prompts."""
    return np.abs(density.mode_masses(model, prompts) - 1 / 3).sum(axis=-1).mean(axis=1) / 2


def lottery(seed: int = 0, *, runs: int = 20, steps: int = 400, progress: Step = silent) -> LotteryFound:
    """Measure how much NLL and mode error vary between runs with K random answers per prompt: the mode lottery."""
    prompts, ks = 120, (1, 2, 4, 8)
    random = np.random.default_rng([seed, 3])
    test = world.draw_prompts(200, random)
    x, pools = world.draw_sets(runs, prompts, POOL, random)
    tables = np.empty((2, len(ks), runs))
    for place, k in enumerate(ks):
        _, model = _train(["random_k"], x, pools, k, random, steps=steps)
        tables[:, place] = true_nll(model, test), _mode_errors(model, test)
        progress(place + 1, len(ks))
    measured = [part.tolist() for table in tables for part in (table, table.mean(axis=1), table.std(axis=1, ddof=1))]
    return LotteryFound(ks, prompts, POOL, runs, steps, *measured)


def by_selector(seed: int = 0, *, repeats: int = 5, steps: int = 400, progress: Step = silent) -> BySelectorFound:
    """Measure the NLL of new answers and the mode error after training on the answers that each selector keeps."""
    prompts, ks = 150, (1, 2, 4, 8, 16)
    random = np.random.default_rng([seed, 4])
    x, pools = world.draw_sets(repeats, prompts, POOL, random)
    tables = np.empty((2, len(SELECTORS), len(ks), repeats))
    for place, k in enumerate(ks):
        data, model = _train(SELECTORS, x, pools, k, random, steps=steps)
        for number, own in enumerate(data):
            one = Densities([(weight[number, None], bias[number, None]) for weight, bias in model.layers])
            found = true_nll(one, own)[0], _mode_errors(one, own)[0]
            tables[:, number // repeats, place, number % repeats] = found
        progress(place + 1, len(ks))
    rows = [tables[0], *tables.mean(axis=-1)]
    by_name = (dict(zip(SELECTORS, table.tolist(), strict=True)) for table in rows)
    return BySelectorFound(ks, prompts, POOL, repeats, steps, *by_name)


def gradients(seed: int = 0, *, trials: int = 400, networks: int = 8, progress: Step = silent) -> GradientsFound:
    """Measure bias, variance and gradient direction of each selector, on the paper's untrained network and others."""
    prompts, k = 30, 4
    random, papers = np.random.default_rng([seed, 5]), np.random.RandomState(PAPER_SEED)
    paper = measure_gradients(PAPER_SEED, papers.randn(prompts, world.DIMENSION), k, trials, random)
    progress(1, 2)
    others = [
        measure_gradients(1000 + number, world.draw_prompts(prompts, random), k, trials // 8, random)
        for number in range(networks)
    ]
    progress(2, 2)
    rows = {}
    for name in SELECTORS:
        errors, cosines = zip(*((other[name].emse, other[name].cosine) for other in others), strict=True)
        rows[name] = SelectorGradients(
            **asdict(paper[name]),
            published=PUBLISHED_GRADIENTS.get(name),
            emse_other_networks=(min(errors), max(errors)),
            cosine_other_networks=(min(cosines), max(cosines)),
        )
    return GradientsFound(trials, networks, k, POOL, prompts, rows)


def measure_gradients(
    network: int, prompts: np.ndarray, k: int, trials: int, random: np.random.Generator
) -> dict[str, GradientError]:
    """Measure bias², variance, EMSE and gradient cosine of each selector at one network, against the integrated truth.

    The trials' own noise is subtracted from bias², which may then be below 0.
    """
    outputs, products = density.gradient_products(Densities.initialised([network]), prompts)
    nodes, weights = world.quadrature()
    losses, deltas = output_gradients(outputs, world.centre(prompts)[:, None] + nodes)
    true_loss, true_delta = losses @ weights, np.einsum("njd,j->nd", deltas, weights)

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        pairs = ((one, other), (one, one), (other, other))
        inner, *squares = (np.einsum("nd,nde,ne->n", a, products, b) for a, b in pairs)
        return float((inner / np.sqrt(squares[0] * squares[1])).mean())

    losses_of = np.empty((len(SELECTORS), trials, len(prompts)))
    cosines = np.empty((len(SELECTORS), trials))
    for trial in range(trials):
        responses, _ = world.draw_responses(prompts, POOL, random)
        rewards = world.rewards(prompts, responses)
        losses, deltas = output_gradients(outputs, responses)
        for row, name in enumerate(SELECTORS):
            kept = world.choose(name, responses, rewards, k, random)
            losses_of[row, trial] = np.take_along_axis(losses, kept, 1).mean(axis=1)
            cosines[row, trial] = cosine(np.take_along_axis(deltas, kept[..., None], 1).mean(axis=1), true_delta)
    spread = losses_of.var(axis=1, ddof=1).mean(axis=1)
    bias = ((losses_of.mean(axis=1) - true_loss) ** 2).mean(axis=1) - spread / trials
    columns = (bias, spread, bias + spread, cosines.mean(axis=1), cosines.std(axis=1) / np.sqrt(trials))
    return {name: GradientError(*(float(column[row]) for column in columns)) for row, name in enumerate(SELECTORS)}


def bridge(seed: int = 0, progress: Step = silent) -> BridgeFound:
    """Compare similarity of answers with similarity of gradients, and compute k_eff by selector."""
    prompts, pool, ks = 50, 16, (2, 4, 8)
    random = np.random.default_rng([seed, 6])
    x = world.draw_prompts(prompts, random)
    responses, modes = world.draw_responses(x, pool, random)
    outputs, products = density.gradient_products(Densities.initialised([PAPER_SEED]), x)
    _, deltas = output_gradients(outputs, responses)
    inner = np.einsum("nid,nde,nje->nij", deltas, products, deltas)
    lengths = np.sqrt(np.einsum("nii->ni", inner))
    cosines, similarities = inner / lengths[:, :, None] / lengths[:, None, :], world.closeness(responses)
    above = np.triu_indices(pool, 1)
    similarity, cosine = similarities[:, *above].ravel(), cosines[:, *above].ravel()
    same = (modes[:, :, None] == modes[:, None, :])[:, *above].ravel()
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.digitize(similarity, edges) - 1, 0, BINS - 1)
    bins = []
    for number, middle in enumerate((edges[1:] + edges[:-1]) / 2):
        inside = cosine[place == number]
        if len(inside) > 5:
            mean, error = float(inside.mean()), float(inside.std() / np.sqrt(len(inside)))
            bins.append(Bin(float(middle), mean, error, len(inside)))
    rewards = world.rewards(x, responses)
    effective: dict[str, list[float]] = {name: [] for name in SELECTORS}
    for name in SELECTORS:
        for k in ks:
            kept = world.choose(name, responses, rewards, k, random)
            tables = [row[np.ix_(chosen, chosen)] for row, chosen in zip(similarities, kept, strict=True)]
            effective[name].append(effective_k(k, float(np.mean([row[np.triu_indices(k, 1)] for row in tables]))))
    progress(1, 1)
    shown = random.choice(len(cosine), size=400, replace=False)
    return BridgeFound(
        prompts=prompts,
        pool=pool,
        pairs=len(cosine),
        correlation=float(np.corrcoef(similarity, cosine)[0, 1]),
        cosine_same_mode=float(cosine[same].mean()),
        cosine_other_mode=float(cosine[~same].mean()),
        bins=bins,
        points=np.round(np.stack([similarity, cosine], axis=1)[shown], 4).tolist(),
        k=ks,
        k_eff=effective,
    )
