"""`best_k` (BKoN): keep the K responses with the highest scores."""

from collections.abc import Sequence

from mrt_plugin.selection.pool import Choice, Pool, Selector, Settings


def choose(pools: Sequence[Pool], settings: Settings) -> list[Choice]:
    """Choose the first K in tie order, which sorts by score."""
    return [Choice(list(range(settings.k))) for _ in pools]


SELECTOR = Selector(choose, needs_scores=True)
