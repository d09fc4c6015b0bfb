"""Preference Ranking Optimization (PRO): rank a group's responses by their mean token log-probability."""

from torch import Tensor

from mrt_plugin.loss.ranking import Pairs, best_of


def pro_loss(means: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """Return the ranking loss of each group, [G].

    With r_k the mean token log-probability of response k and s_k its score, the best first:

        L = -sum over k of log( exp(r_k/T_k) / (exp(r_k/T_k) + sum over i below k of exp(r_i/T_ki)) )
        T_ki = 1 / (s_k - s_i),  T_k = min over i below k of T_ki

    Only responses with a lower score are below k: ties and responses without a score are left out of each other's
    denominators. With two responses, L = -log sigmoid((s_1 - s_2)(r_1 - r_2)). Source: Song et al., "Preference
    Ranking Optimization for Human Alignment" (arXiv 2306.17492).

    Args:
        means: [N] r of each response.
        scores: [N] s of each response; NaN if it has none.
        groups: [N] int64, ascending from 0: the group of each response.

    Example:

    >>> import torch
    >>> r, s = torch.tensor([-1.0, -2.0]), torch.tensor([0.75, 0.25])
    >>> torch.allclose(pro_loss(r, s, torch.zeros(2, dtype=torch.int64)), -torch.sigmoid(torch.tensor([0.5])).log())
    True
    """
    pairs = Pairs.of(scores, groups)
    gaps, r = pairs.gaps.to(means.dtype), pairs.pad(means)
    if not gaps.numel():
        return r.sum(-1)
    return pairs.listwise(r * gaps.amax(-1), r[:, None, :] * gaps)


def pro_sft_loss(sums: Tensor, scores: Tensor, groups: Tensor, weight: float = 0.05) -> Tensor:
    """Return the SFT term of each group, [G]: weight·(K - 1)² times the summed NLL of the best response.

    K is the number of responses with a score. Of several best responses the mean counts. The authors' weight is 0.05.

    Args:
        sums: [N] summed token log-probabilities. `scores` and `groups` are those of `pro_loss`.
        weight: 0 leaves the term out.
    """
    pairs = Pairs.of(scores, groups)
    ranked = pairs.pad((~scores.isnan()).to(sums.dtype)).sum(-1)
    nll = pairs.pad(-sums * best_of(scores, groups).to(sums.dtype)).sum(-1)
    return weight * (ranked - 1).clamp_min(0) ** 2 * nll
