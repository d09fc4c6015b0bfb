"""Run all seven experiments, one after the other."""

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from mrt_plugin.simulation.controlled.published import compare

EXPERIMENTS = {
    "variance": "variance of the loss estimate against K",
    "budget": "one budget, prompts or responses",
    "lottery": "the mode lottery",
    "by_selector": "learning a distribution, by selector",
    "gradients": "bias, variance and gradient direction",
    "bridge": "similar answers, similar gradients",
    "tokens": "a transformer on discrete tokens, by this package's trainer",
}
"""Module name in this folder, and title."""

STEPS = {"variance": 1, "budget": 7, "lottery": 4, "by_selector": 5, "gradients": 1, "bridge": 1, "tokens": 40}
"""Number of progress reports of each experiment."""


def run_experiments(
    names: Sequence[str] = tuple(EXPERIMENTS),
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    publish: Callable[[dict[str, Any]], object] = lambda results: None,
) -> dict[str, Any]:
    """Run experiments and compare their results with the published figures.

    Args:
        names: names from `EXPERIMENTS`.
        seed: seed of every draw. The paper's networks keep their own seeds.
        progress: called with an experiment's title, the steps done and the total number of steps.
        publish: called after each experiment with the results so far, so that a stopped run keeps them.

    Returns:
        `seed`, `experiments` (each with its numbers and `seconds`), and `published`, the rows of the comparison.

    Raises:
        ValueError: for an unknown name.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise ValueError(f"Experiment {name!r} is unknown: choose from {', '.join(EXPERIMENTS)}.")
    found: dict[str, Any] = {}
    results: dict[str, Any] = {"seed": seed, "experiments": found, "published": []}
    for name in names:
        title, total, started = EXPERIMENTS[name], STEPS[name], time.perf_counter()
        progress(title, 0, total)
        done = 0

        def step(title: str = title, total: int = total) -> None:
            nonlocal done
            done += 1
            progress(title, min(done, total), total)

        run = import_module(f"mrt_plugin.simulation.controlled.{name}").experiment
        found[name] = run(seed, progress=step) if total > 1 else run(seed)
        found[name]["seconds"] = time.perf_counter() - started
        results["published"] = compare(found)
        publish(results)
        progress(title, total, total)
    return results
