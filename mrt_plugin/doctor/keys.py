"""Find recipe errors that a schema cannot see, such as keys that Axolotl silently drops."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from mrt_plugin.axolotl.args import MrtBlock
from mrt_plugin.axolotl.checks import fields_of, load_plugin, output_slips, schemas
from mrt_plugin.axolotl.entries import PREFIX
from mrt_plugin.options import Need

NEEDS = [
    Need(
        ("lora_r", "lora_alpha", "lora_dropout", "lora_target_linear", "lora_target_modules"),
        lambda recipe: recipe.get("adapter"),
        "adapter: lora or qlora; without one all weights are trained",
    ),
    Need(
        ("evals_per_epoch", "eval_steps"),
        lambda recipe: recipe.get("val_set_size") or recipe.get("test_datasets"),
        "val_set_size or test_datasets",
    ),
]
"""Options of Axolotl that have no effect without others, and for which it gives no warning."""


def recipe_slips(path: Path) -> list[str]:
    """Return the problems of a recipe's text: keys given twice, keys that no schema has, data given twice, ..."""
    loader = _Loader(path.read_text(encoding="utf-8"))
    recipe = loader.get_single_data()
    if not isinstance(recipe, dict):
        return [f"{path} holds no options, one `name: value` per line."]
    slips = [*loader.twice, *_unknown(recipe)]
    entries = [entry for entry in recipe.get("datasets") or [] if isinstance(entry, dict)]
    read = [{key: value for key, value in entry.items() if key != "type"} for entry in entries]
    for place, source in enumerate(read):
        if source in read[:place]:
            again = f"datasets[{place}] reads what datasets[{read.index(source)}] reads"
            slips.append(f"{again}: its prompts are trained twice.")
    for need in NEEDS:
        idle = [key for key in need.names if recipe.get(key) is not None]
        if idle and not need.used(recipe):
            slips.append(f"{', '.join(idle)}: this has no effect here: it needs {need.words}.")
    return slips + list(output_slips(recipe))


class _Loader(yaml.SafeLoader):
    """Records the keys that a mapping has twice. YAML uses the last one."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[str] = []

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                self.twice.append(
                    f"{key.value} is given in lines {seen[key.value]} and {line}, and only the last counts."
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep)


def _unknown(recipe: dict[str, Any]) -> Iterator[str]:
    """Yield plugins that cannot be loaded, and keys that nothing reads. The plugin checks options of `mrt:`."""
    for name in recipe.get("plugins") or []:
        try:
            load_plugin(str(name))
        except (ImportError, AttributeError, ValueError) as error:
            yield f"plugins: {name} cannot be loaded, and Axolotl goes on without it: {error}. Correct or remove it."
    known = fields_of(schemas(recipe.get("plugins") or []))
    ours = {"selector", *MrtBlock.model_fields, "mrt"}
    for place, key, names in _strange(recipe, known, ""):
        if place or key not in ours:
            guess = get_close_matches(str(key), names, n=1)
            advice = f": did you mean {guess[0]}?" if guess else ". Remove it, or list the plugin that it belongs to."
            yield f"{place}{key} is not an option of Axolotl or a plugin here, and would be dropped{advice}"


def _strange(values: dict[str, Any], known: dict[str, Any], place: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each key that its schema does not have: its place, the key, and the names that the schema has."""
    for key, value in values.items():
        if key not in known:
            yield place, key, list(known)
            continue
        models = _models(known[key])
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            if models and isinstance(item, dict) and not str(item.get("type")).startswith(PREFIX):
                index = f"[{number}]" if isinstance(value, list) else ""
                yield from _strange(item, fields_of(models), f"{place}{key}{index}.")


def _models(hint: Any) -> list[type[BaseModel]]:
    """Return the models in a type, or none if the type also accepts any mapping."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [] if hint.model_config.get("extra") == "allow" else [hint]
    parts = get_args(hint)
    mapping = any(part is dict or get_origin(part) is dict for part in (hint, *parts))
    return [] if mapping else [model for part in parts for model in _models(part)]
