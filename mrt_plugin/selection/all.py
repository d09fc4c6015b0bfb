"""`all`: keep every response and ignore K. For groups that are already selected."""

from collections.abc import Sequence

from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings


def choose(pools: Sequence[Pool], settings: Settings) -> list[Choice]:
    """Choose all N responses."""
    return [Choice(list(range(pool.size))) for pool in pools]


SELECTOR = Selector(choose, keeps_all=True)
