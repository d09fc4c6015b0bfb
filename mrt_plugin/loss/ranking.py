"""What the objectives that rank a group's responses share: the pairs that are compared, and the figures logged."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """The responses of G groups, each with at most K, and the pairs of each group that have different scores."""

    places: Tensor
    """[G, K] int64: the place of each response in the arrays of all N responses; -1 on padding."""
    gaps: Tensor
    """[G, K, K] float64: by how much response k scores above response i, where it does, else 0."""

    @classmethod
    def of(cls, scores: Tensor, groups: Tensor) -> "Pairs":
        """Compare the responses of each group.

        Args:
            scores: [N]; NaN for a response that is not ranked.
            groups: [N] int64, ascending from 0: the group of each response.
        """
        counts = torch.bincount(groups)
        widest = int(counts.max()) if len(counts) else 0
        order = torch.arange(widest, device=groups.device)
        first = (counts.cumsum(0) - counts)[:, None]
        places = torch.where(order < counts[:, None], first + order, -1)
        padded = _pad(scores.double(), places, torch.nan)
        gaps = padded[:, :, None] - padded[:, None, :]
        return cls(places, torch.where(gaps > 0, gaps, 0.0))  # a comparison with NaN is False

    @property
    def better(self) -> Tensor:
        """[G, K, K] bool: whether response k scores above response i. Ties and missing scores do not compare."""
        return self.gaps > 0

    def pad(self, values: Tensor) -> Tensor:
        """Return values [N] of the responses as [G, K], with 0 on padding."""
        return _pad(values, self.places, 0.0)

    def listwise(self, own: Tensor, others: Tensor) -> Tensor:
        """Return for each group -sum over k of log( e^own_k / (e^own_k + sum over i below k of e^others_ki) ), [G].

        Args:
            own: [G, K].
            others: [G, K, K], read where response k is better than i.
        """
        against = others.masked_fill(~self.better, -torch.inf)
        total = torch.logsumexp(torch.cat([own[:, :, None], against], -1), -1)
        # The last response, and one that is not ranked, compare with nothing: their logarithm is 0.
        return (total - own).sum(-1)


def _pad(values: Tensor, places: Tensor, fill: float) -> Tensor:
    if not len(values):  # keeps the graph, so that every process has gradients to reduce
        return values.sum() + values.new_zeros(places.shape)
    return torch.where(places >= 0, values[places.clamp_min(0)], fill)


def best_of(scores: Tensor, groups: Tensor) -> Tensor:
    """Return each response's share in "the best response of its group", [N] float64: equal shares if several tie.

    Example:

    >>> best_of(torch.tensor([1.0, 3.0, 3.0, torch.nan]), torch.tensor([0, 0, 0, 0])).tolist()
    [0.0, 0.5, 0.5, 0.0]
    """
    known = torch.where(scores.isnan(), -torch.inf, scores.double())
    count = int(groups.max()) + 1 if len(groups) else 0
    highest = known.new_full((count,), -torch.inf).scatter_reduce(0, groups, known, "amax")
    best = ((known == highest[groups]) & known.isfinite()).double()
    return best / best.new_zeros(count).index_add(0, groups, best).clamp_min(1)[groups]


FIGURES = ("best_nll", "ranking_accuracy", "margin")
"""The figures of `name_figures`: nats per token of the best responses, the share of pairs with different scores that
the model orders rightly, and the mean difference of the model's own scores in these pairs."""


@torch.no_grad()
def figure_sums(rewards: Tensor, sums: Tensor, lengths: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """Return five sums, [5] float64, which add up over micro-batches and processes.

    They are the NLL and the tokens of the best responses, the pairs, those ordered rightly, and the sum of their
    differences. Pairs without a reward are left out.

    Args:
        rewards: [N]: the model's own score of each response; NaN if there is none.
        sums: [N]: summed log-probabilities. `lengths` are their tokens, `scores` and `groups` as for `Pairs`.
    """
    best = best_of(scores, groups)
    pairs = Pairs.of(scores, groups)
    padded = pairs.pad(rewards.double())
    margins = padded[:, :, None] - padded[:, None, :]
    compared = pairs.better & ~margins.isnan()
    right = compared & (margins > 0)
    margin = torch.where(compared, margins, 0.0).sum()
    nll = -(best * sums.double()).sum()
    return torch.stack([nll, (best * lengths).sum(), compared.sum().double(), right.sum().double(), margin])


def name_figures(sums: list[float]) -> dict[str, float]:
    """Return the `FIGURES` from the sums of `figure_sums`, without those of nothing."""
    nll, tokens, pairs, right, margin = sums
    found = {"best_nll": nll / tokens} if tokens else {}
    return found | ({"ranking_accuracy": right / pairs, "margin": margin / pairs} if pairs else {})
