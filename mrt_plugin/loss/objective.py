"""Choose the training objective of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from mrt_plugin.layout.responses import Responses
from mrt_plugin.loss.dft import dft_loss
from mrt_plugin.loss.gem import gem_loss
from mrt_plugin.loss.plackett_luce import implicit_rewards, plackett_luce_loss
from mrt_plugin.loss.pro import pro_loss, pro_sft_loss
from mrt_plugin.loss.ranking import figure_sums
from mrt_plugin.loss.token_nll import TokenLoss, token_nll
from mrt_plugin.options import LossOptions, ObjectiveOptions, ranks


@dataclass(frozen=True)
class Scored:
    """What a model gives the N responses of a batch."""

    losses: torch.Tensor
    """[G] loss of each group."""
    figures: torch.Tensor
    """[5] sums of `mrt_plugin.loss.ranking.figure_sums`."""


@dataclass(frozen=True)
class Objective:
    """A training objective. It is a loss of each token, or ranks the responses of each group."""

    name: str
    token_loss: TokenLoss = token_nll
    """The loss of each trained token, from its logits."""
    rank: Callable[[torch.Tensor, Responses], Scored] | None = None
    """Return the loss of each group from the NLL [R, T] of the tokens; None for a loss of tokens."""


def choose_objective(options: LossOptions, settings: ObjectiveOptions) -> Objective:
    """Return the objective that the options name.

    Example:

    >>> choose_objective(LossOptions(objective="dft"), ObjectiveOptions()).token_loss is dft_loss
    True
    """
    name = options.objective
    if ranks(options):
        rank = partial(_rank_pro, settings) if name == "pro" else partial(_rank_plackett_luce, settings)
        return Objective(name, rank=rank)
    token_losses: dict[str, TokenLoss] = {
        "nll": token_nll,
        "dft": dft_loss,
        "gem": partial(gem_loss, beta=settings.gem_beta),
    }
    return Objective(name, token_losses[name])


def _rank_pro(settings: ObjectiveOptions, nll: torch.Tensor, responses: Responses) -> Scored:
    sums, lengths = responses.log_probabilities(nll), responses.lengths
    scores, groups, means = responses.response_scores, responses.response_groups, sums / lengths
    losses = pro_loss(means, scores, groups)
    if settings.sft_weight:
        losses = losses + pro_sft_loss(sums, scores, groups, settings.sft_weight)
    return Scored(losses, figure_sums(means, sums, lengths, scores, groups))


def _rank_plackett_luce(settings: ObjectiveOptions, nll: torch.Tensor, responses: Responses) -> Scored:
    sums, lengths = responses.log_probabilities(nll), responses.lengths
    scores, groups = responses.response_scores, responses.response_groups
    references = None if settings.reference == "none" else responses.response_references
    rewards = implicit_rewards(
        sums, lengths, references, beta=settings.plackett_luce_beta, length_normalize=settings.length_normalize
    )
    losses = plackett_luce_loss(rewards, scores, groups)
    return Scored(losses, figure_sums(rewards, sums, lengths, scores, groups))
