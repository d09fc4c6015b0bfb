"""Lay out a grid of training runs over K (responses per prompt), write it as recipes, and summarise its results."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from datasets import Dataset
from scipy.stats import sem

from mrt_plugin.curation import split_held_out
from mrt_plugin.groups.paths import Named, check_paths
from mrt_plugin.groups.write import write_text
from mrt_plugin.planning.budget import Costs, budget_table
from mrt_plugin.planning.fit import InverseFit, Run, by_arm, fit_runs, read_lines

Arm = Literal["equal prompts", "equal pairs", "equal cost"]
ARMS: tuple[Arm, ...] = get_args(Arm)
TYPE = "mrt_plugin.axolotl."
SEED = 42
"""Axolotl's default seed."""


@dataclass(frozen=True)
class GridRun:
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

    settings: list[GridRun]
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
    bought = {row.k: row.prompts for row in budget_table(0, 0, costs, pool_sizes=sizes.tolist(), budget=budget)}
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
                settings.append(GridRun(arm, k, n, n * mean, cost))
    for arm in arms:
        if sum(row.arm == arm for row in settings) < 2:
            raise ValueError(
                f"The arm of {arm} has fewer than two settings, and nothing to compare. {' '.join(left_out)} Give "
                "other values of K, or change prompts, pairs or budget."
            )
    return Grid(settings, left_out)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe and check that a grid can be made from it.

    Raises:
        ValueError: if no grid can be made from it; gives the reason.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    entries = recipe.get("datasets") if isinstance(recipe, dict) else None
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        raise ValueError(f"{path}: a grid needs a recipe with one entry under datasets: the pool.")
    selector = str(entries[0].get("type")).removeprefix(TYPE)
    if not str(entries[0].get("type")).startswith(TYPE) or selector == "all":
        raise ValueError(
            f"{path}: the dataset's type is {entries[0].get('type')}; a grid needs a selector that keeps K of the "
            f"pool, such as {TYPE}random_k."
        )
    block = recipe.get("mrt") or {}
    for name in ("curation", "datasets"):
        if block.get(name):
            raise ValueError(
                f"{path}: with mrt.{name} the number of prompts is known only after it was applied. Apply it first "
                "(mrt select POOL --output curated.jsonl --selector all --curation ...), and make the grid of the "
                "result."
            )
    return dict(recipe)


def training_groups(groups: Dataset, recipe: dict[str, Any]) -> Dataset:
    """Return the groups that the grid's recipes train on, without those held out by `val_set_size`.

    The grid's recipes draw their prompts with a curation rule. With curation the split keeps similar prompts together,
    so this function does the same.
    """
    share = recipe.get("val_set_size") or 0
    if not share:
        return groups
    block = recipe.get("mrt") or {}
    train, _, _ = split_held_out(
        groups, share, seed=recipe.get("seed") or SEED, threshold=block.get("held_out_threshold") or 0.8
    )
    return train


def runs_file(output: Path) -> Path:
    """Return the path of a grid's list of runs."""
    return output / "runs.jsonl"


def write_grid(
    settings: Sequence[GridRun],
    output: Path,
    *,
    recipe: dict[str, Any] | None = None,
    repeats: int = 1,
    read: Iterable[Named] = (),
) -> list[dict[str, Any]]:
    """Write `runs.jsonl`, one line per arm and run, and with a recipe `n<prompts>-k<K>-r<repeat>.yaml` for each run.

    The curation rule `sample` draws a run's prompts from the recipe's seed, so a larger n includes the prompts of a
    smaller n. Each repeat draws other responses (`selection_seed`). If two arms need the same run, they share one
    recipe, which is trained once. A recipe never overwrites a file in `read`.

    Returns:
        The lines of `runs.jsonl`. `loss` is None until it is filled in.

    Raises:
        FileExistsError: if `runs.jsonl` already exists, because it may hold results.
        ValueError: if a recipe would overwrite a file in `read`.
    """
    listing = runs_file(output)
    if listing.exists():
        raise FileExistsError(f"{listing} is there already, and may hold results: choose another --output.")
    lines = []
    recipes: dict[Path, str] = {}
    for setting in settings:
        for repeat in range(repeats):
            name = f"n{setting.prompts}-k{setting.k}-r{repeat}"
            line: dict[str, Any] = {**asdict(setting), "repeat": repeat, "loss": None}
            if recipe is not None:
                made = _recipe_of(recipe, setting, repeat, name)
                recipes[output / f"{name}.yaml"] = yaml.safe_dump(made, sort_keys=False, allow_unicode=True)
                line |= {"recipe": f"{name}.yaml", "output_dir": made["output_dir"]}
            lines.append(line)
    check_paths([("the recipe", path) for path in recipes], read)
    for path, text in recipes.items():
        write_text(path, text)
    write_text(listing, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def _recipe_of(recipe: dict[str, Any], setting: GridRun, repeat: int, name: str) -> dict[str, Any]:
    block = {
        **(recipe.get("mrt") or {}),
        "k": setting.k,
        "selection_seed": repeat,
        "curation": [{"sample": {"groups": setting.prompts}}],
    }
    folder = Path(recipe.get("output_dir") or "./model-out") / name
    return {**recipe, "seed": recipe.get("seed") or SEED, "mrt": block, "output_dir": str(folder)}


@dataclass(frozen=True)
class KResult:
    """Mean held-out loss of the runs at one K. An error that needs more runs is None."""

    k: float
    runs: int
    loss: float
    error: float | None
    """Standard error of the mean."""
    difference: float
    """Difference to the smallest K."""
    difference_error: float | None


@dataclass(frozen=True)
class ArmResult:
    """Results of one arm."""

    by_k: list[KResult]
    best_k: float
    fit: InverseFit | None
    """Fit of loss = a + b/K; None with only one K so far."""


def read_results(path: Path) -> tuple[list[Run], list[str]]:
    """Read the finished runs of a `runs.jsonl`, and the names of the unfinished ones.

    If a line has no loss, it is the last held-out loss that the trainer saved with the last checkpoint in
    `output_dir`.

    Raises:
        DataError: if lines are not valid runs; lists them.
    """

    def read(row: dict[str, Any]) -> Run | str | None:
        k, loss, arm = float(row["k"]), row.get("loss"), str(row.get("arm", "all runs"))
        if loss is None and row.get("output_dir") is not None:
            loss = last_held_out_loss(Path(row["output_dir"]))
        return row.get("recipe") if loss is None else Run(k, float(loss), arm)

    def problem(run: Run | str | None) -> str | None:
        return run.problem() if isinstance(run, Run) else None

    expected = 'is not a run: write {"k": 4, "loss": 1.23, "arm": "equal cost"}.'
    found = read_lines(path, read, expected, problem)
    runs = [run for _, _, run in found if isinstance(run, Run)]
    missing = [str(run or f"line {number}") for number, _, run in found if not isinstance(run, Run)]
    return runs, list(dict.fromkeys(missing))


def last_held_out_loss(folder: Path) -> float | None:
    """Return the last `eval_loss` that the transformers trainer logged in a run's folder; None if there is none."""
    states = {
        int(re.sub(r"\D", "", path.parent.name)): path for path in folder.glob("checkpoint-*/trainer_state.json")
    }
    if not states:
        return None
    history = json.loads(states[max(states)].read_text(encoding="utf-8"))["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return float(losses[-1]) if losses else None


def weigh_results(runs: Iterable[Run]) -> dict[str, ArmResult]:
    """Compute for each arm the mean loss and standard error by K, the difference to the smallest K, and a + b/K fits.

    Example:

    >>> found = weigh_results([Run(1, 2.0), Run(1, 2.2), Run(4, 1.6), Run(4, 1.6)])["all runs"]
    >>> [(row.k, round(row.loss, 3), round(row.difference, 3)) for row in found.by_k]
    [(1, 2.1, 0.0), (4, 1.6, -0.5)]
    """
    found = {}
    for arm, members in by_arm(runs).items():
        rows: list[KResult] = []
        for k in sorted({run.k for run in members}):
            losses = np.array([run.loss for run in members if run.k == k])
            loss, error = float(losses.mean()), float(sem(losses)) if len(losses) > 1 else None
            first = rows[0] if rows else None
            both = None
            if first is not None and first.error is not None and error is not None:
                both = float(np.hypot(error, first.error))
            rows.append(KResult(k, len(losses), loss, error, loss - first.loss if first else 0.0, both))
        fit = fit_runs(members)[arm] if len(rows) > 1 else None
        found[arm] = ArmResult(rows, min(rows, key=lambda row: row.loss).k, fit)
    return found
