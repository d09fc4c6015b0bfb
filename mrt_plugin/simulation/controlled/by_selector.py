"""Experiment 4: learn a distribution from the answers that each selector keeps.

The result is the negative log-likelihood (NLL) of new answers to the training prompts. There are 150 prompts, and a
selector keeps K of 32 answers.
"""

from typing import Any

import numpy as np

from mrt_plugin.simulation.controlled import world
from mrt_plugin.simulation.controlled.density import mode_masses, train, true_nll
from mrt_plugin.simulation.controlled.strategies import SELECTORS, choose

KS = (1, 2, 4, 8, 16)
PROMPTS, POOL = 150, 32


def experiment(seed: int = 0, *, repeats: int = 5, steps: int = 400, progress: Any = lambda: None) -> dict[str, Any]:
    """Measure the true NLL and the mean mode error (as in experiment 3) of every run, by selector and K."""
    random = np.random.default_rng([seed, 4])
    prompts = np.stack([world.draw_prompts(PROMPTS, random) for _ in range(repeats)])
    pools = np.stack([world.draw_responses(x, POOL, random)[0] for x in prompts])
    nll: dict[str, list[list[float]]] = {name: [] for name in SELECTORS}
    error: dict[str, list[list[float]]] = {name: [] for name in SELECTORS}
    for k in KS:
        kept = [
            np.take_along_axis(y, choose(name, y, world.rewards(x, y), k, random), 1)
            for name in SELECTORS
            for x, y in zip(prompts, pools, strict=True)
        ]
        data = np.tile(prompts, (len(SELECTORS), 1, 1))
        model = train(data, np.stack(kept), random.integers(2**31, size=len(data)).tolist(), steps=steps)
        progress()
        for number, name in enumerate(SELECTORS):
            nlls, errors = [], []
            for repeat in range(repeats):
                one = model.part(number * repeats + repeat)
                nlls.append(float(true_nll(one, prompts[repeat])[0]))
                errors.append(float(np.abs(mode_masses(one, prompts[repeat]) - 1 / 3).sum(axis=-1).mean() / 2))
            nll[name].append(nlls)
            error[name].append(errors)
    return {
        "k": list(KS),
        "prompts": PROMPTS,
        "pool": POOL,
        "repeats": repeats,
        "steps": steps,
        "nll": nll,
        "nll_mean": {name: [float(np.mean(row)) for row in rows] for name, rows in nll.items()},
        "mode_error_mean": {name: [float(np.mean(row)) for row in rows] for name, rows in error.items()},
    }
