"""Lay out a grid of training runs over K (responses per prompt), at equal prompts, equal pairs or equal cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mrt_plugin.planning.budget import Costs, choices

Arm = Literal["equal prompts", "equal pairs", "equal cost"]
ARMS: tuple[Arm, ...] = get_args(Arm)


@dataclass(frozen=True)
class Setting:
    """One run of the grid: n prompts with K responses each."""

    arm: Arm
    k: int
    prompts: int
    """n"""
    pairs: float
    """n times the mean of min(K, N_x), with N_x the pool size of prompt x: the expected number for random prompts."""
    cost: float
    """Cost of an epoch, in the unit of the costs."""


@dataclass(frozen=True)
class Grid:
    """The possible runs, and the reasons why others are left out."""

    settings: list[Setting]
    left_out: list[str]
    """One sentence per run left out, with the reason."""


def make_grid(
    pool_sizes: Sequence[int],
    costs: Costs,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    prompts: int | None = None,
    pairs: int | None = None,
    budget: float | None = None,
    arms: Sequence[Arm] = ARMS,
) -> Grid:
    """Build the settings (n prompts, K responses each) that keep prompts, pairs or cost fixed while K rises.

    By default each arm starts from an epoch of every prompt with one response. The arms then keep its number of
    prompts, its number of pairs, or its cost.

    Args:
        pool_sizes: pool size N of each prompt owned.
        costs: costs C_p of a prompt and C_r of a response, and the layout that determines the cost of a group.
        ks: the values of K.
        prompts: n in the equal-prompts arm.
        pairs: pairs in the equal-pairs arm.
        budget: cost of an epoch in the equal-cost arm, in the unit of the costs.
        arms: the arms to lay out.

    Raises:
        ValueError: if K is below 1, if fewer than two settings of an arm are possible, or if the budget does not pay
            for one prompt.

    Example:

    >>> grid = make_grid([4] * 100, Costs(prompt=4, response=1), ks=(1, 4))
    >>> [(row.arm, row.k, row.prompts) for row in grid.settings]  # doctest: +NORMALIZE_WHITESPACE
    [('equal prompts', 1, 100), ('equal prompts', 4, 100), ('equal pairs', 1, 100), ('equal pairs', 4, 25),
     ('equal cost', 1, 100), ('equal cost', 4, 62)]
    """
    sizes = np.asarray(pool_sizes)
    owned, largest = len(sizes), int(sizes.max())
    wanted = sorted(set(ks))
    if not wanted or wanted[0] < 1:
        raise ValueError("K must be at least 1: give several, such as 1, 2, 4, 8.")
    left_out = [f"K = {k}: no pool has more than {largest} responses." for k in wanted if k > largest]
    kept = {k: float(np.minimum(sizes, k).mean()) for k in wanted if k <= largest}
    prompts = owned if prompts is None else prompts
    pairs = owned if pairs is None else pairs
    budget = owned * costs.of_prompt(1) if budget is None else budget
    bought = {row.k: row.prompts for row in choices(0, 0, costs, pool_sizes=sizes.tolist(), budget=budget)}
    settings = []
    for arm in arms:
        for k, mean in kept.items():
            if arm == "equal prompts":
                n = prompts
            elif arm == "equal pairs":
                n = round(pairs / mean)
            else:
                n = bought[k]
            cost = n * costs.of_prompt(mean)
            if n > owned:
                left_out.append(f"{arm}, K = {k}: it takes {n:,} prompts, and there are {owned:,}.")
            elif n < 1:
                left_out.append(f"{arm}, K = {k}: it leaves less than one prompt.")
            elif arm == "equal cost" and n == owned and budget - cost >= costs.of_prompt(mean):
                left_out.append(
                    f"{arm}, K = {k}: all {owned:,} prompts cost {cost:,.0f}, less than the {budget:,.0f} to be spent."
                )
            else:
                settings.append(Setting(arm, k, n, n * mean, cost))
    for arm in arms:
        if sum(row.arm == arm for row in settings) < 2:
            raise ValueError(
                f"The arm of {arm} has fewer than two settings, and nothing to compare. {' '.join(left_out)} Give "
                "other values of K, or change prompts, pairs or budget."
            )
    return Grid(settings, left_out)
