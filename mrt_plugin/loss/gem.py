"""GEM: the NLL of a token with an entropy regulariser, which keeps the distribution diverse."""

import torch
from torch import nn


def gem_loss(logits: torch.Tensor, targets: torch.Tensor, beta: float = 0.7) -> torch.Tensor:
    """Return nll + sum over v of q_v·log p_v for each token, [n], with q = softmax(logits / beta) held constant.

    p is the model's distribution. The gradient by the logits is q - onehot(target), where that of the NLL is
    p - onehot(target): equal at beta = 1. Below 1, q is sharper than p. Where q fits the data, p is flatter than the
    data, so diversity is kept. The value may be negative. Source: Li et al., "Preserving Diversity in Supervised
    Fine-Tuning of Large Language Models" (arXiv 2408.16673), their linear variant.

    Args:
        logits: [n, V] float32.
        targets: [n] int64.
        beta: temperature of q, above 0.

    Example:

    >>> gem_loss(torch.zeros(1, 4), torch.tensor([0])).abs().item() < 1e-6  # p and q are uniform
    True
    """
    q = torch.softmax(logits.detach() / beta, -1)
    log_p = torch.log_softmax(logits, -1)
    # A token that the model excludes has log p = -inf and q = 0.
    expected = (q * log_p.masked_fill(q == 0, 0.0)).sum(-1)
    return expected + nn.functional.nll_loss(log_p, targets, reduction="none")
