"""Lay out a grid of training runs over K (responses per prompt), and write it as recipes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from datasets import Dataset

from mrt_plugin.curation import split_held_out
from mrt_plugin.groups.paths import Named, check_paths
from mrt_plugin.groups.write import write_text
from mrt_plugin.planning.budget import Costs, budget_table

Arm = Literal["equal prompts", "equal pairs", "equal cost"]
ARMS: tuple[Arm, ...] = get_args(Arm)
TYPE = "mrt_plugin.axolotl."
RUNS = "runs.jsonl"
SEED = 42  # Axolotl's default


@dataclass(frozen=True)
class GridRun:
    arm: Arm
    k: int
    prompts: int
    pairs: float
    cost: float


@dataclass(frozen=True)
class Grid:
    settings: list[GridRun]
    left_out: list[str]


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

    By default each arm keeps the prompts, the pairs or the cost of an epoch of every prompt with one response.
    """
    sizes = np.asarray(pool_sizes)
    owned, largest = len(sizes), int(sizes.max())
    wanted = sorted(set(ks))
    left_out = [f"K = {k}: no pool has more than {largest} responses." for k in wanted if k > largest]
    prompts, pairs = prompts or owned, pairs or owned
    budget = owned * costs.of_prompt(1) if budget is None else budget
    table = {row.k: row for row in budget_table(0, 0, costs, pool_sizes=pool_sizes, budget=budget)}
    settings = []
    for arm in arms:
        for k in (k for k in wanted if k <= largest):
            mean = float(np.minimum(sizes, k).mean())
            n = {"equal prompts": prompts, "equal pairs": round(pairs / mean), "equal cost": table[k].prompts}[arm]
            one = costs.of_prompt(mean)
            why = None
            if n > owned:
                why = f"it takes {n:,} prompts, and there are {owned:,}"
            elif n < 1:
                why = "it leaves less than one prompt"
            elif arm == "equal cost" and n == owned and budget - n * one >= one:
                why = f"all {owned:,} prompts cost {n * one:,.0f}, less than the {budget:,.0f} to be spent"
            if why is None:
                settings.append(GridRun(arm, k, n, n * mean, n * one))
            else:
                left_out.append(f"{arm}, K = {k}: {why}.")
        if sum(row.arm == arm for row in settings) < 2:
            raise ValueError(
                f"The arm of {arm} has fewer than two settings, and nothing to compare. {' '.join(left_out)} Give "
                "other values of K, or change prompts, pairs or budget."
            )
    return Grid(settings, left_out)


def read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    match recipe:
        case {"datasets": [{"type": str(kind)}]} if kind.startswith(TYPE) and kind != f"{TYPE}all":
            block = recipe.get("mrt") or {}
        case {"datasets": [dict(entry)]}:
            raise ValueError(
                f"{path}: the dataset's type is {entry.get('type')}; a grid needs one that keeps K of the pool: "
                f"{TYPE}random_k, for example."
            )
        case _:
            raise ValueError(f"{path}: a grid needs a recipe with one entry under datasets: the pool.")
    for name in ("curation", "datasets"):
        if block.get(name):
            raise ValueError(
                f"{path}: with mrt.{name} the number of prompts is not known yet. First apply it (mrt select POOL "
                "--output curated.jsonl --selector all --curation ...), and make the grid of the result."
            )
    return dict(recipe)


def training_groups(groups: Dataset, recipe: dict[str, Any]) -> Dataset:
    """Return the groups that the grid's recipes train on. With curation, the split keeps similar prompts together."""
    share, block = recipe.get("val_set_size") or 0, recipe.get("mrt") or {}
    if not share:
        return groups
    seed, threshold = recipe.get("seed") or SEED, block.get("held_out_threshold") or 0.8
    return split_held_out(groups, share, seed=seed, threshold=threshold)[0]


def write_grid(
    settings: Sequence[GridRun],
    output: Path,
    *,
    recipe: dict[str, Any] | None = None,
    repeats: int = 1,
    read: Iterable[Named] = (),
) -> list[dict[str, Any]]:
    """Write `runs.jsonl` and return its lines, and with a recipe write `n<prompts>-k<K>-r<repeat>.yaml` for each run.

    A run's prompts are drawn from the recipe's seed, so a larger n includes those of a smaller n. Each repeat draws
    other responses. No file in `read` is replaced.
    """
    listing = output / RUNS
    if listing.exists():
        raise FileExistsError(f"{listing} is there already, and may hold results: choose another --output.")
    lines, recipes = [], {}
    for setting, repeat in product(settings, range(repeats)):
        line: dict[str, Any] = {**asdict(setting), "repeat": repeat, "loss": None}
        if recipe is not None:
            name = f"n{setting.prompts}-k{setting.k}-r{repeat}"
            rules = [{"sample": {"groups": setting.prompts}}]
            block = {**(recipe.get("mrt") or {}), "k": setting.k, "selection_seed": repeat, "curation": rules}
            folder = str(Path(recipe.get("output_dir") or "./model-out") / name)
            made = {**recipe, "seed": recipe.get("seed") or SEED, "mrt": block, "output_dir": folder}
            recipes[output / f"{name}.yaml"] = yaml.safe_dump(made, sort_keys=False, allow_unicode=True)
            line |= {"recipe": f"{name}.yaml", "output_dir": folder}
        lines.append(line)
    check_paths([("the recipe", path) for path in recipes], read)
    for path, text in recipes.items():
        write_text(path, text)
    write_text(listing, "".join(json.dumps(line) + "\n" for line in lines))
    return lines
