"""Dynamic fine-tuning (DFT): the NLL of a token, weighted by its own probability."""

import torch
from torch import nn


def dft_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return p·nll for each token, [n]. No gradient flows through the probability p of the token.

    The gradient is that of p itself: unlikely tokens pull less than under the NLL. Source: Wu et al., "On the
    Generalization of SFT" (arXiv 2508.05629); TRL's `loss_type="dft"`.

    Args:
        logits: [n, V] float32.
        targets: [n] int64.

    Example:

    >>> dft_loss(torch.zeros(1, 2), torch.tensor([0])).item() == 0.5 * torch.log(torch.tensor(2.0)).item()
    True
    """
    nll = nn.functional.cross_entropy(logits, targets, reduction="none")
    return torch.exp(-nll).detach() * nll
