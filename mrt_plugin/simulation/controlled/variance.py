"""Experiment 1: the variance of a loss estimate against K, the answers per prompt, with n = 100 prompts.

The loss is the squared error of an untrained two-layer network. V_x, the variance between prompts, and V_{y|x}, the
variance between answers to one prompt, are known: the moments over answers are integrated, and prompts are cheap to
draw.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from mrt_plugin.planning.fit import fit_inverse_k
from mrt_plugin.planning.variance import bootstrap_intervals, estimate_components
from mrt_plugin.simulation.controlled import world

KS = (1, 2, 4, 8, 16, 32)
PROMPTS = 100
PAPER_SEED = 42
"""PyTorch seed of the paper's network."""


def experiment(seed: int = 0, *, repeats: int = 2000) -> dict[str, Any]:
    """Measure the variance at each K, and compute V_x/n + V_{y|x}/(n·K) with the true V_x and V_{y|x}.

    Also compute what `mrt plan` would estimate from one such dataset with 8 responses per prompt.
    """
    random = np.random.default_rng([seed, 1])
    predict = paper_network()
    v_x, v_yx = true_components(predict, random)

    estimates = np.empty((repeats, len(KS)))
    for number in range(repeats):
        prompts = world.draw_prompts(PROMPTS, random)
        responses, _ = world.draw_responses(prompts, max(KS), random)
        losses = (predict(prompts)[:, None] - responses) ** 2
        estimates[number] = [losses[:, :k].mean() for k in KS]
    measured = estimates.var(axis=0, ddof=1)

    prompts = world.draw_prompts(PROMPTS, random)
    responses, _ = world.draw_responses(prompts, 8, random)
    losses = ((predict(prompts)[:, None] - responses) ** 2).tolist()
    found, intervals = estimate_components(losses), bootstrap_intervals(losses, seed=seed)
    assert intervals is not None, "PROMPTS are enough for an interval"
    fit = fit_inverse_k(KS, measured)
    return {
        "prompts": PROMPTS,
        "repeats": repeats,
        "v_x": v_x,
        "v_yx": v_yx,
        "k": list(KS),
        "variance": measured.tolist(),
        "variance_error": (measured * np.sqrt(2 / (repeats - 1))).tolist(),
        "predicted": [(v_x + v_yx / k) / PROMPTS for k in KS],
        "fit": {"a": fit.a, "b": fit.b, "r_squared": fit.r_squared},
        "one_dataset": {
            "v_x": found.v_x,
            "v_x_interval": [intervals.v_x.low, intervals.v_x.high],
            "v_yx": found.v_yx,
            "v_yx_interval": [intervals.v_yx.low, intervals.v_yx.high],
        },
    }


def paper_network() -> Any:
    """Build an untrained network with two hidden ReLU layers of 32: a function from prompts [n, 5] to numbers [n]."""
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


def true_components(predict: Any, random: np.random.Generator, prompts: int = 200_000) -> tuple[float, float]:
    """Compute V_x and V_{y|x} of the squared error, exactly over answers and from a large sample of prompts."""
    x = world.draw_prompts(prompts, random)
    nodes, weights = world.quadrature(8)  # exact up to degree 15; the square of a loss is a polynomial of degree 4
    losses = (predict(x)[:, None] - world.centre(x)[:, None] - nodes) ** 2
    means = losses @ weights
    return float(means.var(ddof=1)), float((losses**2 @ weights - means**2).mean())
