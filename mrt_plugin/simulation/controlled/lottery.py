"""Experiment 3: the mode lottery. How much does the result of training vary with one random answer per prompt?

It uses 120 prompts and K random answers of 32. The 20 runs differ in data and initial weights.
"""

from typing import Any

import numpy as np

from mrt_plugin.simulation.controlled import world
from mrt_plugin.simulation.controlled.density import mode_masses, train, true_nll
from mrt_plugin.simulation.controlled.strategies import choose

KS = (1, 2, 4, 8)
PROMPTS, POOL = 120, 32


def experiment(seed: int = 0, *, runs: int = 20, steps: int = 400, progress: Any = lambda: None) -> dict[str, Any]:
    """Measure the true negative log-likelihood (NLL) and the mode error of every run, by K.

    The mode error is the share of probability on the wrong mode: the total variation distance between the network's
    probabilities of the three modes and the truth (one third each). It is averaged over test prompts.
    """
    random = np.random.default_rng([seed, 3])
    test = world.draw_prompts(200, random)
    prompts = np.stack([world.draw_prompts(PROMPTS, random) for _ in range(runs)])
    pools = np.stack([world.draw_responses(x, POOL, random)[0] for x in prompts])
    nll, error = [], []
    for k in KS:
        kept = [
            np.take_along_axis(y, choose("random_k", y, world.rewards(x, y), k, random), 1)
            for x, y in zip(prompts, pools, strict=True)
        ]
        model = train(prompts, np.stack(kept), random.integers(2**31, size=runs).tolist(), steps=steps)
        progress()
        nll.append(true_nll(model, test).tolist())
        error.append((np.abs(mode_masses(model, test) - 1 / 3).sum(axis=-1).mean(axis=1) / 2).tolist())
    return {
        "k": list(KS),
        "prompts": PROMPTS,
        "pool": POOL,
        "runs": runs,
        "steps": steps,
        "nll": nll,
        "nll_mean": [float(np.mean(values)) for values in nll],
        "nll_sd": [float(np.std(values, ddof=1)) for values in nll],
        "mode_error": error,
        "mode_error_mean": [float(np.mean(values)) for values in error],
        "mode_error_sd": [float(np.std(values, ddof=1)) for values in error],
    }
