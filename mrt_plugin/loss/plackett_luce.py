"""List-wise DPO: a Plackett-Luce model of a group's ranking."""

from torch import Tensor

from mrt_plugin.loss.ranking import Pairs


def plackett_luce_loss(rewards: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """Return the negative log-likelihood of each group's ranking, [G].

    With h_k the reward of response k, the best first, L = -sum over k of log( e^h_k / (e^h_k + sum over i below k of
    e^h_i) ). Only responses with a lower score are below k: ties and responses without a score are left out of each
    other's denominators. With two responses this is DPO's loss, and with one best response among equals S-DPO's
    (arXiv 2406.09215). Source: Rafailov et al., "Direct Preference Optimization" (arXiv 2305.18290), appendix A.3.

    Args:
        rewards: [N] h, usually `implicit_rewards`.
        scores: [N] score of each response; NaN if it has none.
        groups: [N] int64, ascending from 0: the group of each response.

    Example:

    >>> import torch
    >>> h, s = torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0])
    >>> loss = plackett_luce_loss(h, s, torch.zeros(2, dtype=torch.int64))
    >>> torch.allclose(loss, -torch.sigmoid(torch.tensor([0.5])).log())
    True
    """
    pairs = Pairs.of(scores, groups)
    h = pairs.pad(rewards)
    return pairs.listwise(h, h[:, None, :].expand_as(pairs.gaps))


def implicit_rewards(
    sums: Tensor, lengths: Tensor, references: Tensor | None, *, beta: float, length_normalize: bool
) -> Tensor:
    """Return beta·(log p - log p_ref) of each response, [N].

    Args:
        sums: [N] log p: summed token log-probabilities of the model.
        lengths: [N] number of tokens.
        references: [N] log p_ref of the reference model; None for a reference-free objective.
        beta: scale of the rewards.
        length_normalize: divide by the number of tokens.
    """
    ratios = sums if references is None else sums - references.to(sums.dtype)
    return beta * (ratios / lengths.to(sums.dtype) if length_normalize else ratios)
