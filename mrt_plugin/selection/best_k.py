"""`best_k` (BKoN): the K highest scores."""

from collections.abc import Sequence

from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings


def choose(pools: Sequence[Pool], settings: Settings) -> list[Choice]:
    """The first K in tie order, which goes by score."""
    return [Choice(list(range(settings.k))) for _ in pools]


SELECTOR = Selector(choose, needs_scores=True)
