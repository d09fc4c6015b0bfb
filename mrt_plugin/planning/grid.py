"""Lay out a grid of training runs over K (responses per prompt) and options, and write it as recipes."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from datasets import Dataset

from mrt_plugin.curation import split_held_out
from mrt_plugin.extension import is_extension
from mrt_plugin.groups.paths import Named, check_paths
from mrt_plugin.groups.write import write_text
from mrt_plugin.options import MultiResponseOptions, check_options, names_of, unused_options
from mrt_plugin.planning.budget import Costs, budget_table
from mrt_plugin.selection.registry import get_selector

Arm = Literal["equal prompts", "equal pairs", "equal cost"]
ARMS: tuple[Arm, ...] = get_args(Arm)
TYPE = "mrt_plugin.axolotl."
RUNS = "runs.jsonl"
SEED = 42  # Axolotl's default


@dataclass(frozen=True)
class GridRun:
    """One setting. `options` are its values of the axes, fields of `MultiResponseOptions`."""

    arm: str
    k: int
    prompts: int
    pairs: float
    cost: float | None
    options: dict[str, Any] = field(default_factory=dict)
    annotations: int | None = None
    """Scored responses in total, in the design of prompts against responses."""
    steps: int | None = None
    """Optimizer steps; None leaves the recipe's epochs."""

    def name(self, repeat: int) -> str:
        """Return the name of its recipe and folder."""
        values = [re.sub(r"[^\w.]+", "_", f"{name}_{value}") for name, value in self.options.items()]
        steps = [] if self.steps is None else [f"s{self.steps}"]
        return "-".join([f"n{self.prompts}", f"k{self.k}", *values, *steps, f"r{repeat}"])

    def line(self) -> dict[str, Any]:
        """Return its line in `runs.jsonl`, without what it does not have."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}


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
    combinations: Sequence[dict[str, Any]] = ({},),
) -> Grid:
    """Build the settings (n prompts, K responses each) that keep prompts, pairs or cost fixed while K rises.

    By default each arm keeps the prompts, the pairs or the cost of an epoch of every prompt with one response. Each
    setting is made for all `combinations` of options (see `combine_axes`). A layout among them decides the cost.
    """
    sizes = np.asarray(pool_sizes)
    owned, largest = len(sizes), int(sizes.max())
    wanted = sorted(set(ks))
    left_out = [f"K = {k}: no pool has more than {largest} responses." for k in wanted if k > largest]
    prompts, pairs = prompts or owned, pairs or owned
    budget = owned * costs.of_prompt(1) if budget is None else budget
    settings: list[GridRun] = []
    for arm in arms:
        for options, k in product(combinations, (k for k in wanted if k <= largest)):
            paid = paid_costs(costs, options)
            table = {row.k: row for row in budget_table(0, 0, paid, pool_sizes=pool_sizes, budget=budget)}
            mean = float(np.minimum(sizes, k).mean())
            n = {"equal prompts": prompts, "equal pairs": round(pairs / mean), "equal cost": table[k].prompts}[arm]
            one = paid.of_prompt(mean)
            why = None
            if n > owned:
                why = f"it takes {n:,} prompts, and there are {owned:,}"
            elif n < 1:
                why = "it leaves less than one prompt"
            elif arm == "equal cost" and n == owned and budget - n * one >= one:
                why = f"all {owned:,} prompts cost {n * one:,.0f}, less than the {budget:,.0f} to be spent"
            if why is None:
                settings.append(GridRun(arm, k, n, n * mean, n * one, options))
            else:
                left_out.append(f"{arm}, {describe(options, f'K = {k}')}: {why}.")
        if sum(row.arm == arm for row in settings) < 2:
            raise ValueError(
                f"The arm of {arm} has fewer than two settings, and nothing to compare. {' '.join(left_out)} Give "
                "other values of K, or change prompts, pairs or budget."
            )
    return Grid(settings, list(dict.fromkeys(left_out)))


def describe(options: Mapping[str, Any], *first: str) -> str:
    """Return options in words: `selector=best_k, alpha=0.5`, after `first`."""
    return ", ".join([*first, *(f"{name}={value}" for name, value in options.items())])


def paid_costs(costs: Costs, options: Mapping[str, Any]) -> Costs:
    """Return the costs in the layout of these options, if they name one that is not `auto`."""
    layout = options.get("layout", "auto")
    return costs if layout == "auto" else replace(costs, layout=layout)


def parse_axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return axes of the form `name=value,value`: any option of a run but k, with at least one value.

    >>> parse_axes(["selector=random_k,best_k", "alpha=0.25,1"])
    {'selector': ['random_k', 'best_k'], 'alpha': [0.25, 1]}
    """
    known = [name for name in names_of(MultiResponseOptions) if name not in ("k", "selection_seed", "curation")]
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        found = [yaml.safe_load(value) for value in values.split(",") if value.strip()]
        if name not in known:
            guess = get_close_matches(name, known, n=1)
            hint = f"did you mean {guess[0]}?" if guess else "take an option of docs/options.md; K has --k."
            raise ValueError(f"--axis {text}: {name!r} is no option to vary: {hint}")
        if not found or name in axes:
            raise ValueError(f"--axis {text}: write each axis once, as in --axis selector=random_k,best_k.")
        axes[name] = list(dict.fromkeys(found))
    return axes


def combine_axes(
    axes: Mapping[str, Sequence[Any]], selector: str = "random_k", block: Mapping[str, Any] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return all combinations of the axes that differ in what they do, and a line for each merged one.

    `selector` and `block` are those of the recipe. A value that has no effect beside the others is left out, such as
    alpha beside random_k.

    Raises:
        ValueError: for a value out of bounds, an unknown selector, or `all`, which keeps no K.

    >>> combine_axes({"selector": ["random_k", "diverse_best_k"], "alpha": [0.5]})[0]
    [{'selector': 'random_k'}, {'selector': 'diverse_best_k', 'alpha': 0.5}]
    """
    known = names_of(MultiResponseOptions)
    given = {name: value for name, value in (block or {}).items() if name in known and name != "k"}
    found: list[dict[str, Any]] = []
    merged: list[str] = []
    for values in product(*axes.values()):
        one = dict(zip(axes, values, strict=True))
        options = MultiResponseOptions(**{"selector": selector, **given, **one})
        if get_selector(options.selector).keeps_all:
            raise ValueError(f"selector={options.selector!r} keeps every response, so that no K can be compared.")
        check_options(options)
        idle = unused_options(options, list(one))
        merged += [
            f"{name} with {describe({'selector': options.selector})}: it changes nothing there." for name in idle
        ]
        found.append({name: value for name, value in one.items() if name not in idle})
    distinct = [one for place, one in enumerate(found) if one not in found[:place]]
    return distinct, list(dict.fromkeys(merged))


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


def sample_rule(setting: GridRun, repeat: int) -> dict[str, Any]:
    """Return the curation rule that draws a run's prompts."""
    rule: dict[str, Any] = {"groups": setting.prompts}
    return {"sample": rule if setting.annotations is None else rule | {"seed": repeat}}


def _recipe_of(setting: GridRun, recipe: dict[str, Any], repeat: int) -> dict[str, Any]:
    """Return a run's recipe, but for its `output_dir`."""
    options = dict(setting.options)
    made = {**recipe, "seed": recipe.get("seed") or SEED}
    selector = options.pop("selector", None)
    if selector is not None:
        own = is_extension(selector)
        made["datasets"] = [{**recipe["datasets"][0], "type": f"{TYPE}{'selector' if own else selector}"}]
        options |= {"selector": selector} if own else {}
    rules = [sample_rule(setting, repeat)]
    block = {
        name: value for name, value in (recipe.get("mrt") or {}).items() if selector is None or name != "selector"
    }
    made["mrt"] = {**block, **options, "k": setting.k, "selection_seed": repeat, "curation": rules}
    if setting.steps is not None:
        made |= {"max_steps": setting.steps, "num_epochs": epochs_for(setting, recipe)}
    return made


def epochs_for(setting: GridRun, recipe: dict[str, Any]) -> int:
    """Return epochs that hold at least the run's steps. A packed epoch may have as little as one step."""
    steps = setting.steps or 1
    return steps if recipe.get("sample_packing") else math.ceil(steps * batch_of(recipe) / setting.prompts)


def batch_of(recipe: dict[str, Any]) -> int:
    """Return the prompts per optimizer step, on one process."""
    return int(recipe.get("micro_batch_size") or 1) * int(recipe.get("gradient_accumulation_steps") or 1)


def write_grid(
    settings: Sequence[GridRun],
    output: Path,
    *,
    recipe: dict[str, Any] | None = None,
    repeats: int = 1,
    read: Iterable[Named] = (),
    measure: Callable[[int, int], dict[str, Any]] = lambda prompts, repeat: {},
) -> list[dict[str, Any]]:
    """Write `runs.jsonl` and return its lines, and with a recipe write `n<prompts>-k<K>-r<repeat>.yaml` for each run.

    A run's prompts are drawn from the recipe's seed, so a larger n includes those of a smaller n. Each repeat draws
    other responses, and with `annotations` other prompts too. `measure` gives more fields of a run's line, from its
    number of prompts and its repeat. No file in `read` is replaced.
    """
    listing = output / RUNS
    if listing.exists():
        raise FileExistsError(f"{listing} is there already, and may hold results: choose another --output.")
    lines, recipes = [], {}
    for setting, repeat in product(settings, range(repeats)):
        line: dict[str, Any] = {**setting.line(), "repeat": repeat, "loss": None}
        line |= measure(setting.prompts, repeat)
        if recipe is not None:
            name = setting.name(repeat)
            folder = str(Path(recipe.get("output_dir") or "./model-out") / name)
            made = {**_recipe_of(setting, recipe, repeat), "output_dir": folder}
            recipes[output / f"{name}.yaml"] = yaml.safe_dump(made, sort_keys=False, allow_unicode=True)
            line |= {"recipe": f"{name}.yaml", "output_dir": folder}
        lines.append(line)
    check_paths([("the recipe", path) for path in recipes], read)
    for path, text in recipes.items():
        write_text(path, text)
    write_text(listing, "".join(json.dumps(line) + "\n" for line in lines))
    return lines
