"""The runs of each experiment."""

from collections.abc import Mapping
from pathlib import Path

from mrt_plugin.demo.modes import SUBJECTS
from recipes.alignment.augmentation import OWNED
from recipes.objectives.train import Run

SEEDS = tuple(range(5))
TUNING_SEEDS = (1000, 1001)
RATES = (5e-4, 2e-3, 8e-3)
RESPONSES = (2, 3, 4, 6)
SHARES = {2: 240, 3: 160, 4: 120}
"""Prompts for each number of responses, at 480 annotations."""
FIRST_SUBJECTS = "+".join(list(SUBJECTS)[:2])
"""A narrow subset: prompts about two of the eight subjects."""
HALF_OF_THEM = "+".join(list(SUBJECTS)[:4])
SETS = (
    *(("", prompts) for prompts in (30, 60, 120, 240, 480)),
    *((HALF_OF_THEM, prompts) for prompts in (60, 120)),
    *((FIRST_SUBJECTS, prompts) for prompts in (30, 60)),
)
"""Prompt sets of the linear law: a subset and a number of prompts."""


def tuning() -> list[Run]:
    """Return the runs that choose a learning rate: SFT on the best of 4, and PRO on 4."""
    return [
        Run(*arm, prompts=160, steps=160, learning_rate=rate, seed=seed, n=4)
        for arm in (("nll", "best_k", 1), ("pro", "random_k", 4))
        for rate in RATES
        for seed in TUNING_SEEDS
    ]


def responses(rates: Mapping[str, float]) -> list[Run]:
    """Return PRO on n responses, SFT on the best of the same n, and SFT on all n."""
    return [
        Run(name, selector, k, prompts=160, steps=160, learning_rate=rates[name], seed=seed, n=n)
        for seed in SEEDS
        for n in RESPONSES
        for name, selector, k in (("pro", "random_k", n), ("nll", "best_k", 1), ("nll", "random_k", n))
    ]


def prompts(rates: Mapping[str, float]) -> list[Run]:
    """Return PRO on 480 annotations as prompts x responses, at 120 steps, and at 6 epochs."""
    return [
        Run("pro", "random_k", k, prompts=count, steps=steps, learning_rate=rates["pro"], seed=seed, n=k)
        for seed in SEEDS
        for k, count in SHARES.items()
        for steps in sorted({120, 6 * count // 8})
    ]


def law(rates: Mapping[str, float]) -> list[Run]:
    """Return PRO on 2 responses for prompt sets of several sizes and kinds, at equal steps."""
    return [
        Run("pro", "random_k", 2, prompts=count, steps=120, learning_rate=rates["pro"], seed=seed, n=2, subset=subset)
        for seed in SEEDS
        for subset, count in SETS
    ]


def augment(rates: Mapping[str, float], folder: Path) -> list[Run]:
    """Return PRO on 2 responses: 60 prompts, with the kept candidates, with the dropped ones, with real ones."""
    runs = []
    for seed in SEEDS:
        files = [folder / f"{seed}-{name}.txt" for name in ("filtered", "dropped")]
        size = len(files[0].read_text(encoding="utf-8").split())
        arms = (("", OWNED), *((f"@{file}", size) for file in files), ("", size))
        runs += [
            Run("pro", "random_k", 2, count, steps=120, learning_rate=rates["pro"], seed=seed, n=2, subset=subset)
            for subset, count in arms
        ]
    return runs
