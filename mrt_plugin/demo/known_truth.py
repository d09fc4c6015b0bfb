"""Exact distance of a model from a known truth, computed over the list of right responses of each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.models.log_likelihood import Model, log_likelihoods


class KnownTruth(Protocol):
    """A prompt, all its right responses (modes), and their probabilities, which sum to 1."""

    @property
    def prompt(self) -> Any: ...
    @property
    def modes(self) -> Sequence[Any]: ...
    @property
    def probabilities(self) -> Sequence[float]: ...


@dataclass(frozen=True)
class TruthDistance:
    """Distances between a model's distribution q and the true p: means over prompts, computed without sampling."""

    kl: float
    """KL(p || q) = sum over the modes of p·log(p/q), in nats. q is the model's probability of the complete response,
    including the end token. Probability given to responses that are not modes therefore increases the KL."""
    elsewhere: float
    """1 - sum over the modes of q: the probability of a response that is not a mode."""
    coverage: float
    """The sum of p over the modes with q >= p/2, to which the model gives at least half of their true probability. It
    is 1 for the truth. It is lower for a model that concentrates on the few answers it saw."""
    prompts: int


def truth_distance(model: Model, encoder: Encoder, truths: Sequence[KnownTruth], **how: Any) -> TruthDistance:
    """Compare a model with a known truth by scoring every mode of every prompt.

    Args:
        model: a causal language model, with or without an adapter.
        encoder: the encoding that the model was trained with.
        truths: the prompts with their modes and probabilities.
        how: the options `batch_tokens` and `progress` of `log_likelihoods`.

    Example:

    ```python
    truths = mode_prompts(seed=0)
    distance = truth_distance(model, Encoder(tokenizer), truths)
    print(f"KL to the truth {distance.kl:.3f} nats")
    ```
    """
    pairs = [pair for truth in truths for pair in encoder.encode_group(truth.prompt, truth.modes)]
    scores = log_likelihoods(model, pairs, **how)
    stops = np.cumsum([len(truth.modes) for truth in truths])
    return distance_of(np.split(scores, stops[:-1]), truths)


def distance_of(scores: Sequence[np.ndarray], truths: Sequence[KnownTruth]) -> TruthDistance:
    """Return the distance of a model that gives mode j of prompt i the log-probability `scores[i][j]`, in nats.

    Example:

    >>> from mrt_plugin.demo.modes import mode_prompts
    >>> world = mode_prompts(seed=0)[:1]
    >>> distance = distance_of([np.log(world[0].probabilities)], world)
    >>> round(abs(distance.kl), 12), round(distance.coverage, 12)
    (0.0, 1.0)
    """
    kl, elsewhere, coverage = [], [], []
    for log_q, truth in zip(scores, truths, strict=True):
        p = np.array(truth.probabilities)
        q = np.exp(log_q)
        known = p > 0
        kl.append(float((p[known] * (np.log(p[known]) - log_q[known])).sum()))
        elsewhere.append(float(1 - q.sum()))
        coverage.append(float(p[q >= p / 2].sum()))
    return TruthDistance(
        kl=float(np.mean(kl)),
        elsewhere=float(np.mean(elsewhere)),
        coverage=float(np.mean(coverage)),
        prompts=len(truths),
    )
