"""The log-likelihood of responses under a model, on which all likelihood-based metrics are based."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from mrt_plugin.attention.length_rope import length_ropes, refuse_split_angles
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE

Model = PreTrainedModel | PeftModel

GUESSING = 1.2
"""A mean NLL per token above this factor times ln(vocabulary), the NLL of uniform guessing, suggests a mismatch."""


def pad_pairs(pairs: Sequence[Pair], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `input_ids`, `labels` and `attention_mask`, each [B, T] int64, padded on the right."""
    tokens = [torch.tensor(pair.input_ids) for pair in pairs]
    labels = [torch.where(torch.tensor(pair.trained), ids, IGNORE) for pair, ids in zip(pairs, tokens, strict=True)]
    mask = [torch.ones_like(ids) for ids in tokens]
    parts = ((tokens, pad_token_id), (labels, IGNORE), (mask, 0))
    input_ids, padded, attention_mask = (pad_sequence(part, True, value) for part, value in parts)
    return input_ids, padded, attention_mask


@torch.no_grad()
def log_likelihoods(
    model: Model,
    pairs: Sequence[Pair],
    *,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] = lambda pairs: None,
) -> np.ndarray:
    """Return the summed log-probability of each pair's trained tokens, [n] float64, in nats.

    Equal pairs are computed once, so their results are identical. `progress` gets the pairs of each forward pass.
    """
    copies = equal_responses([[pair] for pair in pairs])
    result = np.zeros(len(pairs))
    training = model.training
    model.eval()
    try:
        lengths = [len(pairs[same[0]].input_ids) for same in copies]
        for chosen in _batches(lengths, batch_tokens, [rope.threshold for rope in length_ropes(model.config)]):
            refuse_split_angles(model.config, [lengths[index] for index in chosen], "measured")
            # Padding is masked and on the right, so any pad token will do: no other token attends to it.
            batch = [pairs[copies[i][0]] for i in chosen]
            input_ids, labels, mask = (part.to(model.device) for part in pad_pairs(batch, 0))
            wanted = labels[:, 1:] != IGNORE
            columns = wanted.any(dim=0).nonzero().squeeze(1)
            # Compute logits only where some pair of the batch is trained. The prompt's logits are never created.
            logits = model(
                input_ids=input_ids, attention_mask=mask, logits_to_keep=columns, use_cache=False
            ).logits.float()
            targets, wanted = labels[:, 1:][:, columns], wanted[:, columns]
            token = logits.gather(2, targets.clamp(min=0)[:, :, None]).squeeze(2) - logits.logsumexp(dim=2)
            found = torch.where(wanted, token, 0.0).double().sum(dim=1).cpu().numpy()
            for i, value in zip(chosen, found, strict=True):
                result[copies[i]] = value
            progress(sum(len(copies[i]) for i in chosen))
    finally:
        model.train(training)
    return result


def response_log_likelihoods(model: Model, responses: Sequence[Sequence[Pair]], **how: Any) -> np.ndarray:
    """Return the log-probability of each response, [n] float64, in nats: the sum over its sequences. `how` is for
    `log_likelihoods`."""
    found = log_likelihoods(model, list(chain.from_iterable(responses)), **how)
    owner = np.repeat(np.arange(len(responses)), [len(sequences) for sequences in responses])
    return np.bincount(owner, found, len(responses))


def equal_responses(responses: Sequence[Sequence[Pair]]) -> list[list[int]]:
    """Return the indices of each distinct response, in the order of first occurrence."""
    places: dict[tuple[tuple[tuple[int, ...], tuple[bool, ...]], ...], list[int]] = {}
    for place, sequences in enumerate(responses):
        key = tuple((tuple(pair.input_ids), tuple(pair.trained)) for pair in sequences)
        places.setdefault(key, []).append(place)
    return list(places.values())


def _batches(lengths: Sequence[int], batch_tokens: int, thresholds: Sequence[int]) -> Iterator[list[int]]:
    """Yield indices of similar lengths: at most `batch_tokens` with padding, on the same side of every threshold."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        apart = batch and any(lengths[index] <= threshold < lengths[batch[0]] for threshold in thresholds)
        if apart or (batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def vocabulary(model: Model) -> int:
    """Return the number of rows of a model's embedding."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[union-attr, index, arg-type]


def check_ids(pairs: Iterable[Pair], model: Model) -> None:
    """Raise ValueError if a token has no embedding."""
    rows = vocabulary(model)
    highest = max((max(pair.input_ids) for pair in pairs), default=0)
    if highest >= rows:
        raise ValueError(
            f"The tokenizer gives token {highest}, and the model has embeddings for {rows} tokens: this tokenizer is "
            "not the model's. Give the folder or name that holds both."
        )


def worse_than_guessing(nll_per_token: float, model: Model) -> str | None:
    """Return a warning if the loss suggests that the tokenizer belongs to another model, else None."""
    rows = vocabulary(model)
    if nll_per_token <= GUESSING * math.log(rows):
        return None
    return (
        f"The model's loss is {nll_per_token:.2f} nats per token, and guessing among its {rows:,} tokens "
        f"has {math.log(rows):.2f}: is this tokenizer the model's?"
    )
