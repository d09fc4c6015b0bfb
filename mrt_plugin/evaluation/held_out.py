"""Held-out negative log-likelihood: how well a model predicts responses that it was not trained on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.evaluation.log_likelihood import Model, log_likelihoods


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
    pairs, owner = [], []
    for number, group in enumerate(groups):
        encoded = encoder.encode_group(group["prompt"], group["responses"])
        pairs += encoded
        owner += [number] * len(encoded)
    if not pairs:
        raise ValueError("There is nothing to evaluate: the held-out data has no groups.")
    nll = -log_likelihoods(model, pairs, **how)
    tokens = sum(pair.trained_length for pair in pairs)
    per_prompt = np.bincount(owner, weights=nll) / np.bincount(owner)
    return HeldOut(
        nll_per_token=float(nll.sum() / tokens),
        nll_per_response=float(per_prompt.mean()),
        prompts=len(per_prompt),
        pairs=len(pairs),
        tokens=tokens,
    )
