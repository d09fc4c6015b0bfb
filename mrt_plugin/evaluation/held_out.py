"""Measure held-out negative log-likelihood (NLL): how well a model predicts responses it was not trained on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.models.log_likelihood import Model, check_ids, log_likelihoods
from mrt_plugin.planning.paired import Measured


@dataclass(frozen=True)
class ResponseNLL:
    """NLL in nats of each of R responses to P prompts, each array [R]. The responses of a prompt are consecutive."""

    nll: np.ndarray
    """0 for a response that does not fit."""
    tokens: np.ndarray
    fits: np.ndarray
    """Whether the response fits `max_length` together with its prompt."""
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
    """Measure the NLL of each response whose pair has at most `max_length` tokens. `how` is for `log_likelihoods`."""
    encoded = [encoder.encode_group(group["prompt"], group["responses"]) for group in groups]
    pairs = [pair for group in encoded for pair in group]
    fits = np.array([max_length is None or len(pair.input_ids) <= max_length for pair in pairs], dtype=bool)
    fitting = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
    check_ids(fitting, model)
    nll = np.zeros(len(pairs))
    nll[fits] = -log_likelihoods(model, fitting, **how)
    tokens = np.array([pair.trained_length for pair in pairs], dtype=np.int64)
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
