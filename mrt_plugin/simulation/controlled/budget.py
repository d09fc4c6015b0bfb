"""Experiment 2: one budget, spent on more prompts or on more responses (C_p = 4, C_r = 1, B = 400).

k* minimises the variance of the loss estimate at one fixed network. What one wants is a low NLL of a trained network,
which is another question. Both are measured, the second as in the paper (after 400 steps, where every network has
overfitted) and at each network's best step.
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
"""The PyTorch seed of the network at which the paper measures V_x and V_{y|x}."""
PAPER_PROMPTS = 300
"""Prompts that the paper measures them on."""
LOOK = (5, 120)
"""The NLL is looked at every 5 steps up to step 120: all networks are at their best before."""


def experiment(seed: int = 0, *, repeats: int = 12, steps: int = 400, progress: Any = lambda: None) -> dict[str, Any]:
    """V_x, V_{y|x} and k* at the paper's untrained network, and the true NLL of networks trained at each K."""
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
    """V_x and V_{y|x} at the paper's network, and how far a sample of 300 prompts misses them (standard errors)."""
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
    """For each K, how often it has the least mean NLL when the repeats are drawn again with replacement."""
    table = np.array(values)
    chosen = random.integers(table.shape[1], size=(draws, table.shape[1]))
    winners = table[:, chosen].mean(axis=2).argmin(axis=0)
    return (np.bincount(winners, minlength=len(table)) / draws).tolist()
