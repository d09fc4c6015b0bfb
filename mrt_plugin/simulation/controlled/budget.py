"""Experiment 2: spend one budget B on more prompts or on more responses.

A prompt costs C_p = 4, a response C_r = 1, and the budget is B = 400. k* responses per prompt minimise the variance of
the loss estimate at one fixed network. The goal is a low negative log-likelihood (NLL) of a trained network, which is
a different question. The experiment measures both. The NLL is measured at each network's best step and, as in the
paper, after 400 steps, where every network has overfitted.
"""

from typing import Any

import numpy as np

from mrt_plugin.planning.budget import Costs, best_choice, best_k_formula, choices
from mrt_plugin.simulation.controlled import world
from mrt_plugin.simulation.controlled.density import Densities, losses_at, train, true_nll
from mrt_plugin.simulation.controlled.strategies import choose

COSTS = Costs(prompt=4, response=1)
BUDGET = 400
KS = (1, 2, 4, 6, 8, 12, 16)
POOL = 32
SELECTORS = ("random_k", "diverse_best_k", "filter_then_spread")
PAPER_SEED = 42 + 7777
"""PyTorch seed of the network on which the paper measures V_x (between prompts) and V_{y|x} (between responses)."""
PAPER_PROMPTS = 300
"""Number of prompts on which the paper measures them."""
LOOK = (5, 120)
"""Interval and last step of the NLL measurements. All networks reach their best NLL before step 120."""


def experiment(seed: int = 0, *, repeats: int = 12, steps: int = 400, progress: Any = lambda: None) -> dict[str, Any]:
    """Measure V_x, V_{y|x} and k* at the paper's untrained network, and the true NLL of networks trained at each K."""
    random = np.random.default_rng([seed, 2])
    at_start = components(random)
    rows = choices(at_start["v_x"], at_start["v_yx"], COSTS, pool_sizes=[POOL] * BUDGET, budget=BUDGET)
    prompts_at = {row.k: row.prompts for row in rows}

    prompts = np.stack([world.draw_prompts(max(prompts_at.values()), random) for _ in range(repeats)])
    pools = np.stack([world.draw_responses(x, POOL, random)[0] for x in prompts])
    test = world.draw_prompts(200, random)
    last: dict[str, list[list[float]]] = {name: [] for name in SELECTORS}
    best: dict[str, list[list[float]]] = {name: [] for name in SELECTORS}
    for k in KS:
        data, kept = [], []
        for name in SELECTORS:
            for x, y in zip(prompts[:, : prompts_at[k]], pools[:, : prompts_at[k]], strict=True):
                data.append(x)
                kept.append(np.take_along_axis(y, choose(name, y, world.rewards(x, y), k, random), 1))
        curve: list[np.ndarray] = []

        def watch(step: int, model: Densities, curve: list[np.ndarray] = curve) -> None:
            if step == steps or (step % LOOK[0] == 0 and step <= LOOK[1]):
                curve.append(true_nll(model, test))

        train(
            np.stack(data), np.stack(kept), random.integers(2**31, size=len(data)).tolist(), steps=steps, watch=watch
        )
        progress()
        for number, name in enumerate(SELECTORS):
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
        "integer_best_k": best_choice(rows).k,
        "variance_curve": [{"k": row.k, "prompts": row.prompts, "variance": row.variance} for row in rows],
        "k": list(KS),
        "prompts": [prompts_at[k] for k in KS],
        "pairs": [k * prompts_at[k] for k in KS],
        "nll_last_step": last,
        "nll_best_step": best,
        "best_k_last_step": {name: best_shares(values, random) for name, values in last.items()},
        "best_k_best_step": {name: best_shares(values, random) for name, values in best.items()},
    }


def components(random: np.random.Generator, prompts: int = 20_000) -> dict[str, float]:
    """Measure V_x and V_{y|x} at the paper's network, and their standard errors in a sample of 300 prompts."""
    x = world.draw_prompts(prompts, random)
    nodes, weights = world.quadrature(8)
    model = Densities.initialised([PAPER_SEED])
    losses = losses_at(model, x, world.centre(x)[:, None] + nodes)
    means = losses @ weights
    within = (losses - means[:, None]) ** 2 @ weights
    squared = (means - means.mean()) ** 2
    return {
        "v_x": float(means.var(ddof=1)),
        "v_yx": float(within.mean()),
        "v_x_error_of_300_prompts": float(squared.std() / np.sqrt(PAPER_PROMPTS)),
        "v_yx_error_of_300_prompts": float(within.std() / np.sqrt(PAPER_PROMPTS)),
    }


def best_shares(values: list[list[float]], random: np.random.Generator, draws: int = 1000) -> list[float]:
    """Return for each K how often it has the lowest mean NLL in bootstrap draws of the repeats."""
    table = np.array(values)
    chosen = random.integers(table.shape[1], size=(draws, table.shape[1]))
    winners = table[:, chosen].mean(axis=2).argmin(axis=0)
    return (np.bincount(winners, minlength=len(table)) / draws).tolist()
