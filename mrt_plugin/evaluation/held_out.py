"""Held-out negative log-likelihood: how well a model predicts responses that it was not trained on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.evaluation.log_likelihood import Model, log_likelihoods
from mrt_plugin.evaluation.tokenizer_match import check_ids


@dataclass(frozen=True)
class HeldOut:
    """Held-out negative log-likelihood (NLL), in nats."""

    nll_per_token: float
    """Token-weighted: the NLL of all held-out tokens over their number. What `eval_loss` is in training."""
    nll_per_response: float
    """The mean over prompts of the mean NLL of their whole responses: every prompt has one vote."""
    prompts: int
    pairs: int
    tokens: int


@dataclass(frozen=True)
class PromptNLL:
    """The NLL of each prompt's responses, in nats. A prompt without responses that fit has zeros."""

    nll: np.ndarray
    """[P] summed over the prompt's responses."""
    tokens: np.ndarray
    """[P] trained tokens, likewise."""
    pairs: np.ndarray
    """[P] responses measured."""
    left_out: int
    """Responses that do not fit `max_length` together with their prompt."""


def prompt_nll(
    model: Model,
    encoder: Encoder,
    groups: Iterable[Mapping[str, Any]],
    *,
    max_length: int | None = None,
    **how: Any,
) -> PromptNLL:
    """The NLL of held-out responses, prompt by prompt.

    Args:
        model: a causal language model, with or without an adapter.
        encoder: the encoding that the model was trained with.
        groups: rows with `prompt` and `responses`; these may be none.
        max_length: tokens of prompt and response together; longer pairs are left out. By default none is.
        how: `batch_tokens` and `progress` of `log_likelihoods`.

    Raises:
        ValueError: if the tokenizer gives a token that the model does not have.

    Example:

    ```python
    found = prompt_nll(model, Encoder(tokenizer), load_groups("held_out.jsonl"))
    found.nll / found.tokens  # nats per token, of each prompt
    ```
    """
    pairs: list[Pair] = []
    owner: list[int] = []
    left_out, count = 0, 0
    for number, group in enumerate(groups):
        encoded: Sequence[Pair] = encoder.encode_group(group["prompt"], group["responses"])
        fitting = [pair for pair in encoded if max_length is None or len(pair.input_ids) <= max_length]
        left_out += len(encoded) - len(fitting)
        pairs += fitting
        owner += [number] * len(fitting)
        count = number + 1
    check_ids(pairs, model)
    nll = -log_likelihoods(model, pairs, **how)
    of = np.array(owner, dtype=np.int64)
    return PromptNLL(
        nll=np.bincount(of, weights=nll, minlength=count),
        tokens=np.bincount(of, weights=[pair.trained_length for pair in pairs], minlength=count).astype(int),
        pairs=np.bincount(of, minlength=count),
        left_out=left_out,
    )


def held_out_nll(model: Model, encoder: Encoder, groups: Iterable[Mapping[str, Any]], **how: Any) -> HeldOut:
    """Measure a model on groups it was not trained on.

    Args:
        model: a causal language model, with or without an adapter.
        encoder: the encoding that the model was trained with.
        groups: rows with `prompt` and `responses`.
        how: `batch_tokens` and `progress` of `log_likelihoods`.

    Raises:
        ValueError: if there are no groups.

    Example:

    ```python
    result = held_out_nll(model, Encoder(tokenizer), load_groups("held_out.jsonl"))
    print(f"{result.nll_per_token:.3f} nats per token over {result.prompts} prompts")
    ```
    """
    found = prompt_nll(model, encoder, groups, **how)
    if not found.pairs.any():
        raise ValueError("There is nothing to evaluate: the held-out data has no groups.")
    known = found.pairs > 0
    return HeldOut(
        nll_per_token=float(found.nll.sum() / found.tokens.sum()),
        nll_per_response=float((found.nll[known] / found.pairs[known]).mean()),
        prompts=int(known.sum()),
        pairs=int(found.pairs.sum()),
        tokens=int(found.tokens.sum()),
    )
