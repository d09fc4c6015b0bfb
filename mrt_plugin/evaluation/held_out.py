"""Measure held-out negative log-likelihood (NLL): how well a model predicts responses it was not trained on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.models.log_likelihood import Model, check_ids, response_log_likelihoods
from mrt_plugin.planning.paired import Measured


@dataclass(frozen=True)
class ResponseNLL:
    """NLL in nats of each of R responses to P prompts, each array [R]. The responses of a prompt are consecutive."""

    nll: np.ndarray
    """0 for a response that does not fit."""
    tokens: np.ndarray
    fits: np.ndarray
    """Whether the response fits `max_length` together with its prompt, in each of its sequences."""
    owner: np.ndarray
    """Index of the response's prompt."""
    prompts: int
    max_length: int | None

    def measured(self, chosen: np.ndarray) -> tuple[Measured, Measured]:
        """Return the NLL per token and per response of each prompt, over the responses in the mask `chosen`, [R]."""
        of = self.owner[chosen]
        nll, tokens = (np.bincount(of, part[chosen], self.prompts) for part in (self.nll, self.tokens))
        pairs = np.bincount(of, minlength=self.prompts)
        with np.errstate(invalid="ignore"):
            return Measured(np.where(pairs > 0, nll, np.nan), tokens), Measured.mean(nll / pairs)


def response_nll(
    model: Model, encoder: Encoder, groups: Iterable[Mapping[str, Any]], *, max_length: int | None = None, **how: Any
) -> ResponseNLL:
    """Measure the NLL of each response whose sequences have at most `max_length` tokens, each turn in the context that
    it has at inference. `how` is for `log_likelihoods`."""
    encoded = [encoder.encode_responses(group["prompt"], group["responses"]) for group in groups]
    responses = [sequences for group in encoded for sequences in group]
    longest = [max(len(pair.input_ids) for pair in sequences) for sequences in responses]
    fits = np.array([max_length is None or length <= max_length for length in longest], dtype=bool)
    fitting = [sequences for sequences, fit in zip(responses, fits, strict=True) if fit]
    check_ids(chain.from_iterable(fitting), model)
    nll = np.zeros(len(responses))
    nll[fits] = -response_log_likelihoods(model, fitting, **how)
    tokens = np.array([sum(pair.trained_length for pair in sequences) for sequences in responses], dtype=np.int64)
    owner = np.repeat(np.arange(len(encoded)), [len(group) for group in encoded])
    return ResponseNLL(nll, tokens, fits, owner, len(encoded), max_length)


def held_out_nll(
    model: Model, encoder: Encoder, groups: Iterable[Mapping[str, Any]], **how: Any
) -> tuple[Measured, Measured]:
    """Measure the NLL per token (like `eval_loss`) and per response on held-out groups, as `response_nll` does."""
    found = response_nll(model, encoder, groups, **how)
    if not found.fits.any():
        raise ValueError("There is nothing to evaluate: the held-out data has no groups.")
    return found.measured(found.fits)
