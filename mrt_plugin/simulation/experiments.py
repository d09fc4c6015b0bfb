"""Experiments 1 to 6 of arXiv 2606.00544, in a world where the truth is known. Experiment 7 is in `tokens`.

Each function runs one experiment, and returns its numbers as JSON-ready dictionaries. V_x is the variance between
prompts and V_{y|x} the variance between answers to one prompt. NLL is the negative log-likelihood.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from mrt_plugin.planning.budget import Costs, best_k_formula, best_row, budget_table
from mrt_plugin.planning.diversity import effective_k
from mrt_plugin.planning.fit import fit_inverse_k
from mrt_plugin.planning.variance import bootstrap_intervals, estimate_components
from mrt_plugin.simulation import world
from mrt_plugin.simulation.density import (
    Densities,
    gradient_products,
    mode_masses,
    output_gradients,
    output_nll,
    train,
    true_nll,
)
from mrt_plugin.simulation.world import SELECTORS

POOL = 32
PAPER_SEED = 42
"""PyTorch seed of the paper's networks, and NumPy seed of the prompts of its gradient experiment."""

COSTS = Costs(prompt=4, response=1)
BUDGET = 400
BUDGET_SELECTORS = ("random_k", "diverse_best_k", "filter_then_spread")
BUDGET_SEED = 42 + 7777
"""PyTorch seed of the network on which the paper measures V_x and V_{y|x} for its budget."""
BUDGET_SAMPLE = 300
"""Number of prompts on which the paper measures them."""
LOOK = (5, 120)
"""Interval and last step of the NLL measurements. All networks reach their best NLL before step 120."""

PUBLISHED_GRADIENTS = {
    "random_k": {"emse": 0.350, "cosine": 0.626},
    "best_k": {"emse": 0.569, "cosine": -0.096},
    "filter_then_spread": {"emse": 0.132, "cosine": 0.658},
}
"""The paper's figures. The paper has none for facility location."""
BINS = 15


def variance(seed: int = 0, *, repeats: int = 2000) -> dict[str, Any]:
    """Measure the variance of a loss estimate at each K, and compute V_x/n + V_{y|x}/(n·K) with the true components.

    The loss is the squared error of an untrained two-layer network on n = 100 prompts. The true components are
    integrated over answers. `one_dataset` is what `mrt plan` would estimate from 8 answers per prompt.
    """
    prompts, ks = 100, (1, 2, 4, 8, 16, 32)
    random = np.random.default_rng([seed, 1])
    predict = _squared_error_network()
    v_x, v_yx = _squared_error_components(predict, random)

    def draw_losses(count: int) -> np.ndarray:
        x = world.draw_prompts(prompts, random)
        responses, _ = world.draw_responses(x, count, random)
        value: np.ndarray = (predict(x)[:, None] - responses) ** 2
        return value

    estimates = np.empty((repeats, len(ks)))
    for row in estimates:
        losses = draw_losses(max(ks))
        row[:] = [losses[:, :k].mean() for k in ks]
    measured = estimates.var(axis=0, ddof=1)
    one = list(draw_losses(8))
    found, intervals = estimate_components(one), bootstrap_intervals(one, seed=seed)
    assert intervals is not None, "100 prompts are enough for an interval"
    fit = fit_inverse_k(ks, measured.tolist())
    return {
        "prompts": prompts,
        "repeats": repeats,
        "v_x": v_x,
        "v_yx": v_yx,
        "k": list(ks),
        "variance": measured.tolist(),
        "variance_error": (measured * np.sqrt(2 / (repeats - 1))).tolist(),
        "predicted": [(v_x + v_yx / k) / prompts for k in ks],
        "fit": {"a": fit.a, "b": fit.b, "r_squared": fit.r_squared},
        "one_dataset": {
            "v_x": found.v_x,
            "v_x_interval": list(intervals.v_x),
            "v_yx": found.v_yx,
            "v_yx_interval": list(intervals.v_yx),
        },
    }


def _squared_error_network() -> Callable[[np.ndarray], np.ndarray]:
    """Build the paper's untrained network: two hidden ReLU layers of 32, from prompts [n, 5] to numbers [n]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PAPER_SEED)
        layers = nn.Sequential(
            nn.Linear(world.DIMENSION, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
        ).double()

    @torch.no_grad()
    def predict(prompts: np.ndarray) -> np.ndarray:
        value: np.ndarray = layers(torch.tensor(prompts))[:, 0].numpy()
        return value

    return predict


def _squared_error_components(
    predict: Callable[[np.ndarray], np.ndarray], random: np.random.Generator, prompts: int = 200_000
) -> tuple[float, float]:
    """Compute V_x and V_{y|x} of the squared error, exactly over answers and from a large sample of prompts."""
    x = world.draw_prompts(prompts, random)
    nodes, weights = world.quadrature(8)  # exact up to degree 15; the square of a loss is a polynomial of degree 4
    losses = (predict(x)[:, None] - world.centre(x)[:, None] - nodes) ** 2
    means = losses @ weights
    return float(means.var(ddof=1)), float((losses**2 @ weights - means**2).mean())


def budget(
    seed: int = 0, *, repeats: int = 12, steps: int = 400, progress: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Spend one budget (400) on more prompts (4 each) or more responses (1 each), and measure the result at each K.

    k* responses per prompt minimise the variance of the loss estimate at one fixed network. The goal is a low NLL of a
    trained network, which is a different question. The experiment measures both. The NLL is measured at each network's
    best step and, as in the paper, after 400 steps, where every network has overfitted.
    """
    ks = (1, 2, 4, 6, 8, 12, 16)
    random = np.random.default_rng([seed, 2])
    at_start = _density_components(random)
    rows = budget_table(at_start["v_x"], at_start["v_yx"], COSTS, pool_sizes=[POOL] * BUDGET, budget=BUDGET)
    prompts_at = {row.k: row.prompts for row in rows}
    prompts, pools = world.draw_sets(repeats, max(prompts_at.values()), POOL, random)
    test = world.draw_prompts(200, random)
    last: dict[str, list[list[float]]] = {name: [] for name in BUDGET_SELECTORS}
    best: dict[str, list[list[float]]] = {name: [] for name in BUDGET_SELECTORS}
    for k in ks:
        x, y = prompts[:, : prompts_at[k]], pools[:, : prompts_at[k]]
        kept = np.concatenate([world.keep(name, x, y, k, random) for name in BUDGET_SELECTORS])
        data = np.tile(x, (len(BUDGET_SELECTORS), 1, 1))
        curve: list[np.ndarray] = []

        def watch(step: int, model: Densities, curve: list[np.ndarray] = curve) -> None:
            if step == steps or (step % LOOK[0] == 0 and step <= LOOK[1]):
                curve.append(true_nll(model, test))

        train(data, kept, random.integers(2**31, size=len(data)).tolist(), steps=steps, watch=watch)
        progress()
        for number, name in enumerate(BUDGET_SELECTORS):
            mine = slice(number * repeats, (number + 1) * repeats)
            last[name].append(curve[-1][mine].tolist())
            best[name].append(np.min(curve, axis=0)[mine].tolist())
    return {
        "costs": {"prompt": COSTS.prompt, "response": COSTS.response},
        "budget": BUDGET,
        "repeats": repeats,
        "steps": steps,
        **at_start,
        "k_star": best_k_formula(at_start["v_x"] / at_start["v_yx"], COSTS),
        "integer_best_k": best_row(rows).k,
        "variance_curve": [{"k": row.k, "prompts": row.prompts, "variance": row.variance} for row in rows],
        "k": list(ks),
        "prompts": [prompts_at[k] for k in ks],
        "pairs": [k * prompts_at[k] for k in ks],
        "nll_last_step": last,
        "nll_best_step": best,
        "best_k_last_step": {name: _best_shares(values, random) for name, values in last.items()},
        "best_k_best_step": {name: _best_shares(values, random) for name, values in best.items()},
    }


def _density_components(random: np.random.Generator, prompts: int = 20_000) -> dict[str, float]:
    """Measure V_x and V_{y|x} at the paper's untrained network, and their standard errors with 300 prompts."""
    x = world.draw_prompts(prompts, random)
    nodes, weights = world.quadrature(8)
    with torch.no_grad():
        outputs = Densities.initialised([BUDGET_SEED]).outputs(torch.tensor(x, dtype=torch.float32)[None])[0].double()
        losses = output_nll(outputs, torch.tensor(world.centre(x)[:, None] + nodes)).numpy()
    means = losses @ weights
    within = (losses - means[:, None]) ** 2 @ weights
    squared = (means - means.mean()) ** 2
    return {
        "v_x": float(means.var(ddof=1)),
        "v_yx": float(within.mean()),
        "v_x_error_of_300_prompts": float(squared.std() / np.sqrt(BUDGET_SAMPLE)),
        "v_yx_error_of_300_prompts": float(within.std() / np.sqrt(BUDGET_SAMPLE)),
    }


def _best_shares(values: list[list[float]], random: np.random.Generator, draws: int = 1000) -> list[float]:
    """Return for each K how often it has the lowest mean NLL in bootstrap draws of the repeats."""
    table = np.array(values)
    chosen = random.integers(table.shape[1], size=(draws, table.shape[1]))
    winners = table[:, chosen].mean(axis=2).argmin(axis=0)
    return (np.bincount(winners, minlength=len(table)) / draws).tolist()


def _mode_errors(model: Densities, prompts: np.ndarray) -> np.ndarray:
    """Compute the share of probability on the wrong mode, averaged over prompts: [M].

    It is the total variation distance between the network's probabilities of the modes and the truth, 1/3 each.
    """
    value: np.ndarray = np.abs(mode_masses(model, prompts) - 1 / 3).sum(axis=-1).mean(axis=1) / 2
    return value


def lottery(
    seed: int = 0, *, runs: int = 20, steps: int = 400, progress: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Measure how much the result of training varies with K random answers per prompt: the mode lottery.

    The runs differ in data and initial weights. Each has 120 prompts. Measured are the true NLL and the mode error.
    """
    prompts, ks = 120, (1, 2, 4, 8)
    random = np.random.default_rng([seed, 3])
    test = world.draw_prompts(200, random)
    x, pools = world.draw_sets(runs, prompts, POOL, random)
    nll, error = [], []
    for k in ks:
        kept = world.keep("random_k", x, pools, k, random)
        model = train(x, kept, random.integers(2**31, size=runs).tolist(), steps=steps)
        progress()
        nll.append(true_nll(model, test).tolist())
        error.append(_mode_errors(model, test).tolist())
    return {
        "k": list(ks),
        "prompts": prompts,
        "pool": POOL,
        "runs": runs,
        "steps": steps,
        "nll": nll,
        "nll_mean": np.mean(nll, axis=1).tolist(),
        "nll_sd": np.std(nll, axis=1, ddof=1).tolist(),
        "mode_error": error,
        "mode_error_mean": np.mean(error, axis=1).tolist(),
        "mode_error_sd": np.std(error, axis=1, ddof=1).tolist(),
    }


def by_selector(
    seed: int = 0, *, repeats: int = 5, steps: int = 400, progress: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Learn a distribution from the answers that each selector keeps, for 150 prompts.

    Measured are the NLL of new answers to the training prompts, and the mode error as in `lottery`.
    """
    prompts, ks = 150, (1, 2, 4, 8, 16)
    random = np.random.default_rng([seed, 4])
    x, pools = world.draw_sets(repeats, prompts, POOL, random)
    nll: dict[str, list[list[float]]] = {name: [] for name in SELECTORS}
    error: dict[str, list[list[float]]] = {name: [] for name in SELECTORS}
    for k in ks:
        kept = np.concatenate([world.keep(name, x, pools, k, random) for name in SELECTORS])
        data = np.tile(x, (len(SELECTORS), 1, 1))
        model = train(data, kept, random.integers(2**31, size=len(data)).tolist(), steps=steps)
        progress()
        for number, name in enumerate(SELECTORS):
            mine = [model.part(number * repeats + repeat) for repeat in range(repeats)]
            nll[name].append([float(true_nll(one, own)[0]) for one, own in zip(mine, x, strict=True)])
            error[name].append([float(_mode_errors(one, own)[0]) for one, own in zip(mine, x, strict=True)])
    return {
        "k": list(ks),
        "prompts": prompts,
        "pool": POOL,
        "repeats": repeats,
        "steps": steps,
        "nll": nll,
        "nll_mean": {name: np.mean(rows, axis=1).tolist() for name, rows in nll.items()},
        "mode_error_mean": {name: np.mean(rows, axis=1).tolist() for name, rows in error.items()},
    }


def gradients(seed: int = 0, *, trials: int = 400, networks: int = 8) -> dict[str, Any]:
    """Measure bias, variance and gradient direction of the K = 4 responses that each selector keeps of 32.

    It runs on the paper's untrained network and 30 prompts, and on other networks and prompts for comparison.

    Returns:
        `selectors`: for each selector bias², variance and EMSE (their sum) of the per-prompt loss, the mean gradient
        cosine, and the range of each over the other networks.
    """
    prompts, k = 30, 4
    random = np.random.default_rng([seed, 5])
    papers = np.random.RandomState(PAPER_SEED).randn(prompts, world.DIMENSION)
    paper = measure_gradients(PAPER_SEED, papers, k, trials, random)
    others = [
        measure_gradients(1000 + number, world.draw_prompts(prompts, random), k, trials // 8, random)
        for number in range(networks)
    ]
    rows: dict[str, dict[str, Any]] = {}
    for name in SELECTORS:
        rows[name] = {**paper[name], "published": PUBLISHED_GRADIENTS.get(name)}
        for key in ("emse", "cosine"):
            values = [other[name][key] for other in others]
            rows[name][f"{key}_other_networks"] = [min(values), max(values)]
    return {"trials": trials, "networks": networks, "k": k, "pool": POOL, "prompts": prompts, "selectors": rows}


def measure_gradients(
    network: int, prompts: np.ndarray, k: int, trials: int, random: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Measure bias², variance, EMSE and gradient cosine of each selector at one network. Each trial draws new pools.

    The truth is integrated, not sampled. The mean of T trials itself has the variance variance/T. This is subtracted
    from bias², which may therefore be slightly below 0.
    """
    outputs, products = gradient_products(Densities.initialised([network]), prompts)
    nodes, weights = world.quadrature()
    losses, deltas = output_gradients(outputs, world.centre(prompts)[:, None] + nodes)
    true_loss, true_delta = losses @ weights, np.einsum("njd,j->nd", deltas, weights)

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        pairs = ((one, other), (one, one), (other, other))
        inner, *squares = (np.einsum("nd,nde,ne->n", a, products, b) for a, b in pairs)
        return float((inner / np.sqrt(squares[0] * squares[1])).mean())

    estimates: dict[str, list[np.ndarray]] = {name: [] for name in SELECTORS}
    cosines: dict[str, list[float]] = {name: [] for name in SELECTORS}
    for _ in range(trials):
        responses, _modes = world.draw_responses(prompts, POOL, random)
        rewards = world.rewards(prompts, responses)
        losses, deltas = output_gradients(outputs, responses)
        for name in SELECTORS:
            kept = world.choose(name, responses, rewards, k, random)
            estimates[name].append(np.take_along_axis(losses, kept, 1).mean(axis=1))
            cosines[name].append(cosine(np.take_along_axis(deltas, kept[..., None], 1).mean(axis=1), true_delta))
    found = {}
    for name in SELECTORS:
        table = np.array(estimates[name])
        spread = float(table.var(axis=0, ddof=1).mean())
        bias = float(((table.mean(axis=0) - true_loss) ** 2).mean()) - spread / trials
        found[name] = {
            "bias_squared": bias,
            "variance": spread,
            "emse": bias + spread,
            "cosine": float(np.mean(cosines[name])),
            "cosine_error": float(np.std(cosines[name]) / np.sqrt(trials)),
        }
    return found


def bridge(seed: int = 0) -> dict[str, Any]:
    """Compare similarity of answers with similarity of gradients, at 50 prompts with 16 answers each.

    Also compute k_eff by selector: how many different answers the K kept are worth.
    """
    prompts, pool, ks = 50, 16, (2, 4, 8)
    random = np.random.default_rng([seed, 6])
    x = world.draw_prompts(prompts, random)
    responses, modes = world.draw_responses(x, pool, random)
    outputs, products = gradient_products(Densities.initialised([PAPER_SEED]), x)
    _, deltas = output_gradients(outputs, responses)
    inner = np.einsum("nid,nde,nje->nij", deltas, products, deltas)
    lengths = np.sqrt(np.einsum("nii->ni", inner))
    cosines = inner / lengths[:, :, None] / lengths[:, None, :]
    similarities = world.closeness(responses)

    above = np.triu_indices(pool, 1)
    similarity, cosine = similarities[:, *above].ravel(), cosines[:, *above].ravel()
    same = (modes[:, :, None] == modes[:, None, :])[:, *above].ravel()
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.digitize(similarity, edges) - 1, 0, BINS - 1)
    bins = []
    for number in range(BINS):
        inside = cosine[place == number]
        if len(inside) > 5:
            middle, error = float((edges[number] + edges[number + 1]) / 2), float(inside.std() / np.sqrt(len(inside)))
            bins.append({"similarity": middle, "cosine": float(inside.mean()), "error": error, "pairs": len(inside)})
    rewards = world.rewards(x, responses)
    effective: dict[str, list[float]] = {name: [] for name in SELECTORS}
    for name in SELECTORS:
        for k in ks:
            kept = world.choose(name, responses, rewards, k, random)
            tables = [row[np.ix_(chosen, chosen)] for row, chosen in zip(similarities, kept, strict=True)]
            effective[name].append(effective_k(k, float(np.mean([row[np.triu_indices(k, 1)] for row in tables]))))
    shown = random.choice(len(cosine), size=400, replace=False)
    return {
        "prompts": prompts,
        "pool": pool,
        "pairs": len(cosine),
        "correlation": float(np.corrcoef(similarity, cosine)[0, 1]),
        "cosine_same_mode": float(cosine[same].mean()),
        "cosine_other_mode": float(cosine[~same].mean()),
        "bins": bins,
        "points": [[round(float(similarity[i]), 4), round(float(cosine[i]), 4)] for i in shown],
        "k": list(ks),
        "k_eff": effective,
    }
