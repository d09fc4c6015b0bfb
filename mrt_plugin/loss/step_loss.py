"""The loss of one optimizer step, computed from the negative log-likelihood (NLL) of its tokens."""

import torch


def step_loss(nll: torch.Tensor, loss_weights: torch.Tensor, units: torch.Tensor, processes: int = 1) -> torch.Tensor:
    """Return this micro-batch's part of the step's loss: sum(c · nll) divided by the step's units (`docs/loss.md`).

    The sum over the micro-batches of a step, averaged over processes, is the loss of the step as one batch.
    Distributed training averages gradients over processes in the same way.

    Args:
        nll: [R, T] per-token negative log-likelihood.
        loss_weights: [R, T] coefficients c.
        units: scalar; the units of all micro-batches of the step on all processes.
        processes: the number of processes over which the gradients are averaged.

    Returns:
        A scalar. 0 where the step has no units, which is a step of filler rows only.

    Example:

    >>> step_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor(4.0)).item()
    0.5
    """
    return (loss_weights * nll).sum() * processes / units.clamp_min(torch.finfo(units.dtype).tiny)
