"""Look up selectors by name. To add one, see CONTRIBUTING.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from mrt_plugin.extension import is_extension, load_extension
from mrt_plugin.options import SelectionOptions
from mrt_plugin.selection.pool import Picks, Pool, Selector

SELECTORS = {
    "random_k": "mrt_plugin.selection.basic:random_k",
    "best_k": "mrt_plugin.selection.basic:best_k",
    "diverse_k": "mrt_plugin.selection.facility_location:diverse_k",
    "diverse_best_k": "mrt_plugin.selection.facility_location:diverse_best_k",
    "filter_then_spread": "mrt_plugin.selection.basic:filter_then_spread",
    "all": "mrt_plugin.selection.basic:keep_all",
}


def get_selector(name: str) -> Selector:
    """Return a selector of this package, or a `Selector` or function of (pool, k) from outside, by its place."""
    if name not in SELECTORS and not is_extension(name):
        own = "your own as package.module:function or file.py:function"
        guess = "".join(f" Did you mean {near}?" for near in get_close_matches(name, SELECTORS, n=1))
        raise ValueError(f"selector={name!r} is unknown: choose one of {', '.join(SELECTORS)}, or {own}.{guess}")
    found = load_extension(SELECTORS.get(name, name))
    if isinstance(found, Selector):
        return found
    if not callable(found):
        raise ValueError(f"selector={name!r} is neither a function nor a Selector.")
    return Selector(EachPool(name), needs_embeddings=True, reads_all=True)


@dataclass(frozen=True)
class EachPool:
    """Apply a plain function to one pool after the other. It is pickled by its name, for other processes."""

    name: str

    def __call__(self, pools: Sequence[Pool], options: SelectionOptions) -> list[Picks]:
        function, k, picks = load_extension(SELECTORS.get(self.name, self.name)), options.k, []
        for pool in pools:
            found = [int(position) for position in function(pool, k)]
            if len(set(found)) != k or len(found) != k or not all(0 <= position < pool.size for position in found):
                what = f"selector={self.name!r} gave {found} for group {pool.metadata['id']}"
                raise ValueError(f"{what}: it must give {k} different positions from 0 to {pool.size - 1}.")
            picks.append(Picks(found))
        return picks
