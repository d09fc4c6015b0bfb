"""Experiment 6: do similar answers have similar gradients? And how many different answers does each selector keep?

It uses 50 prompts with 16 answers each, and an untrained mixture density network.
"""

from typing import Any

import numpy as np

from mrt_plugin.planning.diversity import effective_k
from mrt_plugin.simulation.controlled import world
from mrt_plugin.simulation.controlled.density import Densities, gradient_products, output_gradients
from mrt_plugin.simulation.controlled.strategies import SELECTORS, choose, closeness

KS = (2, 4, 8)
PROMPTS, POOL = 50, 16
PAPER_SEED = 42
"""PyTorch seed of the paper's network."""
BINS = 15


def experiment(seed: int = 0) -> dict[str, Any]:
    """Compute the correlation over pairs of answers, gradient cosines within and across modes, and k_eff by selector.

    k_eff estimates how many different answers the K kept are worth.
    """
    random = np.random.default_rng([seed, 6])
    prompts = world.draw_prompts(PROMPTS, random)
    responses, modes = world.draw_responses(prompts, POOL, random)
    outputs, products = gradient_products(Densities.initialised([PAPER_SEED]), prompts)
    _, deltas = output_gradients(outputs, responses)
    inner = np.einsum("nid,nde,nje->nij", deltas, products, deltas)
    lengths = np.sqrt(np.einsum("nii->ni", inner))
    cosines = inner / lengths[:, :, None] / lengths[:, None, :]

    above = np.triu_indices(POOL, 1)
    similarity, cosine = closeness(responses)[:, *above].ravel(), cosines[:, *above].ravel()
    same = (modes[:, :, None] == modes[:, None, :])[:, *above].ravel()
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.digitize(similarity, edges) - 1, 0, BINS - 1)
    bins = [
        {
            "similarity": float((edges[b] + edges[b + 1]) / 2),
            "cosine": float(cosine[place == b].mean()),
            "error": float(cosine[place == b].std() / np.sqrt((place == b).sum())),
            "pairs": int((place == b).sum()),
        }
        for b in range(BINS)
        if (place == b).sum() > 5
    ]
    rewards = world.rewards(prompts, responses)
    effective: dict[str, list[float]] = {}
    for name in SELECTORS:
        effective[name] = []
        for k in KS:
            kept = choose(name, responses, rewards, k, random)
            inside = [row[np.ix_(chosen, chosen)] for row, chosen in zip(closeness(responses), kept, strict=True)]
            effective[name].append(effective_k(k, float(np.mean([row[np.triu_indices(k, 1)] for row in inside]))))
    shown = random.choice(len(cosine), size=400, replace=False)
    return {
        "prompts": PROMPTS,
        "pool": POOL,
        "pairs": len(cosine),
        "correlation": float(np.corrcoef(similarity, cosine)[0, 1]),
        "cosine_same_mode": float(cosine[same].mean()),
        "cosine_other_mode": float(cosine[~same].mean()),
        "bins": bins,
        "points": [[round(float(similarity[i]), 4), round(float(cosine[i]), 4)] for i in shown],
        "k": list(KS),
        "k_eff": effective,
    }
