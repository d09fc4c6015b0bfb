"""Measure held-out negative log-likelihood: how well a model predicts responses that it was not trained on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.models.log_likelihood import Model, check_ids, log_likelihoods


@dataclass(frozen=True)
class HeldOut:
    """Held-out negative log-likelihood (NLL), in nats."""

    nll_per_token: float
    """NLL of all held-out tokens divided by their number, like `eval_loss` in training."""
    nll_per_response: float
    """Mean over prompts of the mean summed NLL of a prompt's responses. Every prompt has one vote."""
    prompts: int
    pairs: int
    tokens: int


@dataclass(frozen=True)
class PromptNLL:
    """NLL of each of P prompts' responses, in nats. A prompt without measured responses has zeros."""

    nll: np.ndarray
    """[P] NLL summed over the prompt's responses."""
    tokens: np.ndarray
    """[P] trained tokens, summed over the prompt's responses."""
    pairs: np.ndarray
    """[P] number of measured responses."""


@dataclass(frozen=True)
class ResponseNLL:
    """NLL of each of R responses, in nats. The responses of a prompt are consecutive."""

    nll: np.ndarray
    """[R] NLL; 0 for a response that does not fit."""
    tokens: np.ndarray
    """[R] trained tokens."""
    fits: np.ndarray
    """[R] whether the response fits `max_length` together with its prompt."""
    owner: np.ndarray
    """[R] index of the response's prompt."""
    prompts: int
    """P, the number of prompts."""
    max_length: int | None

    def per_prompt(self, chosen: np.ndarray | None = None) -> PromptNLL:
        """Sum over each prompt's responses: those in the mask `chosen`, [R], or by default those that fit."""
        where = self.fits if chosen is None else chosen
        of = self.owner[where]
        return PromptNLL(
            nll=np.bincount(of, weights=self.nll[where], minlength=self.prompts),
            tokens=np.bincount(of, weights=self.tokens[where], minlength=self.prompts).astype(int),
            pairs=np.bincount(of, minlength=self.prompts),
        )


def response_nll(
    model: Model, encoder: Encoder, groups: Iterable[Mapping[str, Any]], *, max_length: int | None = None, **how: Any
) -> ResponseNLL:
    """Measure the NLL of each held-out response.

    Args:
        model: a causal language model, with or without an adapter.
        encoder: the encoding that the model was trained with.
        groups: rows with `prompt` and `responses`; `responses` may be empty.
        max_length: maximum tokens of prompt and response together; longer pairs are left out. No limit by default.
        how: `batch_tokens` and `progress` of `log_likelihoods`.

    Raises:
        ValueError: if the tokenizer returns a token that the model does not have.

    Example:

    ```python
    found = response_nll(model, Encoder(tokenizer), load_groups("held_out.jsonl"))
    found.nll / found.tokens  # nats per token, of each response
    ```
    """
    encoded = [encoder.encode_group(group["prompt"], group["responses"]) for group in groups]
    pairs: list[Pair] = [pair for group in encoded for pair in group]
    fits = np.array([max_length is None or len(pair.input_ids) <= max_length for pair in pairs], dtype=bool)
    fitting = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
    check_ids(fitting, model)
    nll = np.zeros(len(pairs))
    nll[fits] = -log_likelihoods(model, fitting, **how)
    return ResponseNLL(
        nll=nll,
        tokens=np.array([pair.trained_length for pair in pairs], dtype=np.int64),
        fits=fits,
        owner=np.repeat(np.arange(len(encoded)), [len(group) for group in encoded]),
        prompts=len(encoded),
        max_length=max_length,
    )


def held_out_nll(model: Model, encoder: Encoder, groups: Iterable[Mapping[str, Any]], **how: Any) -> HeldOut:
    """Measure a model on groups it was not trained on. Takes the arguments of `response_nll`.

    Raises:
        ValueError: if there are no groups.

    Example:

    ```python
    result = held_out_nll(model, Encoder(tokenizer), load_groups("held_out.jsonl"))
    print(f"{result.nll_per_token:.3f} nats per token over {result.prompts} prompts")
    ```
    """
    found = response_nll(model, encoder, groups, **how).per_prompt()
    known = found.pairs > 0
    if not known.any():
        raise ValueError("There is nothing to evaluate: the held-out data has no groups.")
    return HeldOut(
        nll_per_token=float(found.nll.sum() / found.tokens.sum()),
        nll_per_response=float((found.nll[known] / found.pairs[known]).mean()),
        prompts=int(known.sum()),
        pairs=int(found.pairs.sum()),
        tokens=int(found.tokens.sum()),
    )
