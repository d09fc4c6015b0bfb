"""`all`: every response, whatever K. For groups that were selected before."""

from collections.abc import Sequence

from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings


def choose(pools: Sequence[Pool], settings: Settings) -> list[Choice]:
    """All N."""
    return [Choice(list(range(pool.size))) for pool in pools]


SELECTOR = Selector(choose, keeps_all=True)
