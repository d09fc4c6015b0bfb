"""Experiment 1: the variance of a loss estimate against K, at n = 100 prompts.

The loss is the squared error of an untrained two-layer network. V_x and V_{y|x} are known here: the moments of the
loss over the answers to one prompt are integrated, and prompts are cheap to draw.
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
"""The PyTorch seed of the paper's network."""


def experiment(seed: int = 0, *, repeats: int = 2000) -> dict[str, Any]:
    """The measured variance at each K, beside V_x/n + V_{y|x}/(n·K) with the true V_x and V_{y|x}.

    Also what `mrt plan` would estimate from a single one of these datasets, with 8 responses per prompt.
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
    """An untrained network of two hidden ReLU layers of 32, as a function from prompts [n, 5] to numbers [n]."""
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
    """V_x and V_{y|x} of the squared error, over answers exactly, over prompts from a large sample."""
    x = world.draw_prompts(prompts, random)
    nodes, weights = world.quadrature(8)  # exact for polynomials of degree 15; the square of a loss has degree 4
    losses = (predict(x)[:, None] - world.centre(x)[:, None] - nodes) ** 2
    means = losses @ weights
    return float(means.var(ddof=1)), float((losses**2 @ weights - means**2).mean())
