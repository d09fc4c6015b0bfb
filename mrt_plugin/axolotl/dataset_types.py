"""Look up dataset types of Axolotl and of other packages when the recipe is read; Axolotl itself does so later."""

from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules

from axolotl import prompt_strategies
from axolotl.utils.data.wrappers import DATASET_HANDLERS

from mrt_plugin.selection import SELECTORS

PREFIX = "mrt_plugin.axolotl."


def find_strategy(kind: str) -> str | None:
    """Return the `module:function` that Axolotl calls for a dataset type, or None if there is none."""
    path, _, name = kind.rpartition(".")
    if name == "load" or name.startswith("load_"):
        places, function = [f"{prompt_strategies.__name__}.{path}"], name
    else:
        places, function = [*([kind] if path else []), f"{prompt_strategies.__name__}.{kind}"], "load"
    for place in places:
        try:
            if function in vars(import_module(place)):
                return f"{place}:{function}"
        except ModuleNotFoundError as error:
            if not f"{place}.".startswith(f"{error.name}."):  # the module exists but imports one that does not
                raise
    handler = DATASET_HANDLERS.get(kind.partition(":")[0])
    return f"{handler.__module__}:{handler.__name__}" if handler else None


def meant(kind: str) -> str:
    """Return a question that suggests a type of a similar name; empty if there is none."""
    strategies = [module.name for module in iter_modules(prompt_strategies.__path__)]
    known = {name: name for name in (*DATASET_HANDLERS, *strategies)} | {name: PREFIX + name for name in SELECTORS}
    guess = get_close_matches(kind.rpartition(".")[2], known, n=1)
    return f" Did you mean {known[guess[0]]}?" if guess else ""
