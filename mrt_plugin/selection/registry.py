"""Look up selectors by name.

To add one, write `mrt_plugin/selection/<name>.py` with a `SELECTOR`, and add its name here.
"""

from importlib import import_module

from mrt_plugin.selection.pool import Selector

SELECTORS = (
    "random_k",
    "best_k",
    "diverse_k",
    "diverse_best_k",
    "filter_then_spread",
    "all",
)


def get_selector(name: str) -> Selector:
    """Return the selector of that name.

    Raises:
        ValueError: if the name is unknown; the message lists the known names.
    """
    if name not in SELECTORS:
        raise ValueError(f"selector={name!r} is unknown: choose one of {', '.join(SELECTORS)}.")
    selector: Selector = import_module(f"mrt_plugin.selection.{name}").SELECTOR
    return selector
