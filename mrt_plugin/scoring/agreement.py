"""Measure how well two scorers agree, inside each prompt's responses."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class Agreement:
    """Means over the groups that both scorers score apart, and over their pairs; None without any such group."""

    groups: int
    spearman: float | None
    kendall: float | None
    """Tau-b, which corrects for ties."""
    accuracy: float | None
    """The share of pairs, of those that neither scorer ties, that both put in the same order."""
    pairs: int
    same_best: float | None
    """How often both have a best response in common."""


def agreement(scores: Iterable[Sequence[float]], others: Iterable[Sequence[float]]) -> Agreement:
    """Compare two scorers' scores of the same groups.

    >>> agreement([[1, 2, 3]], [[1, 3, 2]])
    Agreement(groups=1, spearman=0.5, kendall=0.333333333333, accuracy=0.666666666667, pairs=3, same_best=0.0)
    """
    found: list[tuple[float, float, bool]] = []
    same = pairs = 0
    for a, b in zip(scores, others, strict=True):
        x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            continue
        places = np.triu_indices(len(x), 1)
        ours, theirs = (np.sign(values[places[0]] - values[places[1]]) for values in (x, y))
        orders = ours * theirs
        same, pairs = same + int((orders > 0).sum()), pairs + int((orders != 0).sum())
        best = bool(((x == x.max()) & (y == y.max())).any())
        spearman = float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
        found.append((spearman, float(orders.sum() / np.sqrt((ours**2).sum() * (theirs**2).sum())), best))
    if not found:
        return Agreement(0, None, None, None, 0, None)
    means = [round(float(np.mean(values)), 12) + 0.0 for values in zip(*found, strict=True)]
    return Agreement(len(found), means[0], means[1], round(same / pairs, 12) if pairs else None, pairs, means[2])


def agreement_line(
    first: str, scores: Iterable[Sequence[float]], other: str, others: Iterable[Sequence[float]]
) -> str:
    """Return one line for a log: how well the scorer `other` agrees with `first`."""
    found = agreement(scores, others)
    if found.spearman is None:
        return f"{other} and {first}: no group has responses that both score apart."
    accuracy = "" if found.accuracy is None else f", the same order in {found.accuracy:.0%} of {found.pairs:,} pairs"
    return (
        f"{other} agrees with {first}: rank correlation {found.spearman:.2f} (Spearman) and {found.kendall:.2f} "
        f"(Kendall) inside a group (mean of {found.groups:,}){accuracy}, the same best response in "
        f"{found.same_best:.0%}."
    )
