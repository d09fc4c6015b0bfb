"""Experiment 5: bias, variance and gradient direction of the responses that a selector keeps.

It uses 30 prompts, pools of 32, K = 4 and an untrained mixture density network. Every trial draws new pools. The loss
and the gradient of the K kept are compared with those of the true distribution, which are integrated, not sampled.
"""

from typing import Any

import numpy as np

from mrt_plugin.simulation.controlled import world
from mrt_plugin.simulation.controlled.density import Densities, gradient_products, output_gradients
from mrt_plugin.simulation.controlled.strategies import SELECTORS, choose

PROMPTS, POOL, K = 30, 32, 4
PUBLISHED = {
    "random_k": {"emse": 0.350, "cosine": 0.626},
    "best_k": {"emse": 0.569, "cosine": -0.096},
    "filter_then_spread": {"emse": 0.132, "cosine": 0.658},
}
"""The paper's figures. The paper has none for facility location."""
PAPER_SEED = 42
"""PyTorch and NumPy seed of the paper's network and prompts."""


def experiment(seed: int = 0, *, trials: int = 400, networks: int = 8) -> dict[str, Any]:
    """Run the experiment on the paper's network and prompts, and on other networks and prompts for comparison.

    Returns:
        `selectors`: for each selector bias², variance and EMSE (their sum) of the per-prompt loss, the mean gradient
        cosine, and the range of each over the other networks. bias² is corrected for the noise of a finite number of
        trials.
    """
    random = np.random.default_rng([seed, 5])
    prompts = np.random.RandomState(PAPER_SEED).randn(PROMPTS, world.DIMENSION)
    paper = measure(PAPER_SEED, prompts, trials, random)
    others = [
        measure(1000 + number, world.draw_prompts(PROMPTS, random), trials // 8, random) for number in range(networks)
    ]
    rows: dict[str, dict[str, Any]] = {}
    for name in SELECTORS:
        rows[name] = {**paper[name], "published": PUBLISHED.get(name)}
        for key in ("emse", "cosine"):
            values = [other[name][key] for other in others]
            rows[name][f"{key}_other_networks"] = [min(values), max(values)]
    return {"trials": trials, "networks": networks, "k": K, "pool": POOL, "prompts": PROMPTS, "selectors": rows}


def measure(
    network: int, prompts: np.ndarray, trials: int, random: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Measure bias², variance, EMSE and gradient cosine of each selector at one network."""
    outputs, products = gradient_products(Densities.initialised([network]), prompts)
    nodes, weights = world.quadrature()
    losses, deltas = output_gradients(outputs, world.centre(prompts)[:, None] + nodes)
    true_loss, true_delta = losses @ weights, np.einsum("njd,j->nd", deltas, weights)

    estimates: dict[str, list[np.ndarray]] = {name: [] for name in SELECTORS}
    cosines: dict[str, list[float]] = {name: [] for name in SELECTORS}
    for _ in range(trials):
        responses, _modes = world.draw_responses(prompts, POOL, random)
        rewards = world.rewards(prompts, responses)
        losses, deltas = output_gradients(outputs, responses)
        for name in SELECTORS:
            kept = choose(name, responses, rewards, K, random)
            estimates[name].append(np.take_along_axis(losses, kept, 1).mean(axis=1))
            delta = np.take_along_axis(deltas, kept[..., None], 1).mean(axis=1)
            cosines[name].append(float(cosine(delta, true_delta, products).mean()))
    return {
        name: {
            **error(np.array(estimates[name]), true_loss),
            "cosine": float(np.mean(cosines[name])),
            "cosine_error": float(np.std(cosines[name]) / np.sqrt(trials)),
        }
        for name in SELECTORS
    }


def error(estimates: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compute bias², variance and their sum, averaged over prompts, for estimates [trials, n] of truth [n].

    The mean of T trials itself has the variance variance/T. This is subtracted from bias², which may therefore be
    slightly below 0.
    """
    variance = float(estimates.var(axis=0, ddof=1).mean())
    bias = float(((estimates.mean(axis=0) - truth) ** 2).mean()) - variance / len(estimates)
    return {"bias_squared": bias, "variance": variance, "emse": bias + variance}


def cosine(one: np.ndarray, other: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Compute the cosine of two gradients, [n].

    `one` and `other` are gradients with respect to the outputs, [n, 15]. `products` is J·J^T, [n, 15, 15], with J the
    Jacobian of the outputs.
    """

    def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        value: np.ndarray = np.einsum("nd,nde,ne->n", a, products, b)
        return value

    value: np.ndarray = inner(one, other) / np.sqrt(inner(one, one) * inner(other, other))
    return value
