"""Write a grid as Axolotl recipes, with a list of runs for the results."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from mrt_plugin.curation import split_held_out
from mrt_plugin.groups.paths import Named, check_paths
from mrt_plugin.groups.write import write_text
from mrt_plugin.planning.grid import Setting

TYPE = "mrt_plugin.axolotl."
SEED = 42
"""Axolotl's default seed."""


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
    settings: Sequence[Setting],
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


def _recipe_of(recipe: dict[str, Any], setting: Setting, repeat: int, name: str) -> dict[str, Any]:
    block = {
        **(recipe.get("mrt") or {}),
        "k": setting.k,
        "selection_seed": repeat,
        "curation": [{"sample": {"groups": setting.prompts}}],
    }
    folder = Path(recipe.get("output_dir") or "./model-out") / name
    return {**recipe, "seed": recipe.get("seed") or SEED, "mrt": block, "output_dir": str(folder)}
