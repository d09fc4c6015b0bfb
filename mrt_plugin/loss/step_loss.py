"""The loss of one optimizer step, from the NLL of its tokens."""

import torch


def step_loss(nll: torch.Tensor, loss_weights: torch.Tensor, units: torch.Tensor, processes: int = 1) -> torch.Tensor:
    """This micro-batch's part of the step's loss: sum of c·nll over the units of the whole step (`docs/loss.md`).

    Summed over the micro-batches of a step, and averaged over processes as distributed training averages gradients,
    it is the loss of the step as one batch.

    Args:
        nll: [R, T] per-token negative log-likelihood.
        loss_weights: [R, T] coefficients c.
        units: scalar; the units of all micro-batches of the step on all processes.
        processes: over how many processes the gradients are averaged.

    Returns:
        A scalar. 0 where the step has no units (a step of filler rows).

    Example:

    >>> step_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor(4.0)).item()
    0.5
    """
    return (loss_weights * nll).sum() * processes / units.clamp_min(torch.finfo(units.dtype).tiny)
