"""Measure what planning needs from a model: token counts, and the losses and gradients of responses."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from mrt_plugin.encoding import Encoder
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE, build_group_row, count_responses, prompt_length
from mrt_plugin.models.log_likelihood import (
    Model,
    check_ids,
    equal_responses,
    pad_pairs,
    response_log_likelihoods,
    worse_than_guessing,
)
from mrt_plugin.options import LossAggregation, PaidLayout
from mrt_plugin.planning.budget import Costs
from mrt_plugin.planning.progress import Progress, counting

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredGroup:
    """One group: the pool's indices of the N measured responses, and the summed NLL of each in nats, [N]."""

    id: str
    places: list[int]
    responses: list[list[Pair]]
    """The sequences of each response."""
    trained_tokens: np.ndarray
    nll: np.ndarray


@dataclass(frozen=True)
class Measurement:
    groups: list[MeasuredGroup]
    left_out: int
    """Responses left out because prompt and response exceed `max_length`. A group with none left is not listed."""
    max_length: int | None

    @property
    def nll_per_token(self) -> float:
        """Return the mean NLL per trained token, in nats. Every prompt has one vote in numerator and denominator."""
        nll = np.mean([group.nll.mean() for group in self.groups])
        return float(nll / np.mean([group.trained_tokens.mean() for group in self.groups]))

    def losses(self, aggregation: LossAggregation, *, distinct: bool = False) -> list[np.ndarray]:
        """Return the loss of each response, [N] per group, as training counts it. `distinct` leaves out repeats.

        `token` linearises the ratio R of all NLL to all trained tokens: a response with L of them has
        R + (nll - R·L)/(mean L) (Cochran, "Sampling Techniques", section 6.3).
        """
        rows = [(group.nll, group.trained_tokens) for group in self.groups]
        if distinct:
            kept = [[same[0] for same in equal_responses(group.responses)] for group in self.groups]
            rows = [(nll[places], tokens[places]) for (nll, tokens), places in zip(rows, kept, strict=True)]
        if aggregation == "response":
            return [nll / tokens for nll, tokens in rows]
        if aggregation == "prompt":
            return [nll / tokens.mean() for nll, tokens in rows]
        mean_length = np.mean([tokens.mean() for _, tokens in rows])
        ratio = np.mean([nll.mean() for nll, _ in rows]) / mean_length
        return [ratio + (nll - ratio * tokens) / mean_length for nll, tokens in rows]


def measure(
    model: Model,
    encoder: Encoder,
    groups: Iterable[Mapping[str, Any]],
    *,
    max_length: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Measurement:
    """Measure a model on groups. `max_length` limits prompt and response together, by default to the model's limit."""
    limit = max_length or model.config.to_dict().get("max_position_embeddings")
    encoded: list[tuple[str, list[int], list[list[Pair]]]] = []
    left_out = 0
    for group in groups:
        pool = encoder.encode_responses(group["prompt"], group["responses"])
        check_ids(chain.from_iterable(pool), model)
        longest = [max(len(pair.input_ids) for pair in sequences) for sequences in pool]
        fitting = [place for place, length in enumerate(longest) if limit is None or length <= limit]
        left_out += len(pool) - len(fitting)
        if fitting:
            encoded.append((group["id"], fitting, [pool[place] for place in fitting]))
    if not encoded:
        raise ValueError(f"No response fits max_length={limit} with its prompt: raise it, or shorten the data.")
    every = [sequences for _, _, responses in encoded for sequences in responses]
    advance = counting(progress, "losses of responses", sum(map(len, every)))
    nll = -response_log_likelihoods(model, every, progress=advance)
    if not np.isfinite(nll).all():
        raise ValueError("The model's loss is not finite on some response: load it in float32.")
    measured, start = [], 0
    for name, places, responses in encoded:
        own, start = nll[start : start + len(responses)], start + len(responses)
        tokens = np.array([sum(pair.trained_length for pair in sequences) for sequences in responses])
        measured.append(MeasuredGroup(name, places, responses, tokens, own))
    found = Measurement(measured, left_out, limit)
    warning = worse_than_guessing(found.nll_per_token, model)
    if warning:
        logger.warning(warning)
    return found


def token_costs(groups: Iterable[Sequence[Sequence[Pair]]], layout: PaidLayout) -> Costs:
    """Compute the costs in tokens: the means over prompts of a shared prompt's, and of what each response adds."""
    rows = [build_group_row(responses) for responses in groups]
    prompts = [prompt_length(row) for row in rows]
    responses = [
        (len(row["input_ids"]) - prompt) / count_responses(row) for row, prompt in zip(rows, prompts, strict=True)
    ]
    return Costs(float(np.mean(prompts)), float(np.mean(responses)), layout)


def gradient_products(
    model: Model,
    groups: Sequence[Sequence[Sequence[Pair]]],
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[np.ndarray]:
    """Return the inner products of the LoRA gradients of each group's N responses (summed NLL), [N, N] float64.

    A model without an adapter temporarily gets an untrained one. Its B is zero, so the gradient of B is each layer's
    full gradient times the random matrix A, which preserves angles on average.
    """
    training, wanted = model.training, {name: value.requires_grad for name, value in model.named_parameters()}
    own, products = not isinstance(model, PeftModel), []
    adapted: torch.nn.Module = model
    if own:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))  # type: ignore[arg-type]
    try:
        adapted.eval()
        for name, value in adapted.named_parameters():
            value.requires_grad_("lora_B" in name if own else "lora_" in name)
        parameters = [value for value in adapted.parameters() if value.requires_grad]
        if not parameters:
            raise ValueError(
                "The model's adapter has no LoRA parameters: audit the base model, or leave gradients out."
            )
        for responses in groups:
            rows = torch.stack([_gradient(adapted, sequences, parameters) for sequences in responses])
            products.append((rows @ rows.T).double().cpu().numpy())
            progress(len(responses))
    finally:
        if own:
            adapted.unload()  # type: ignore[operator]
        for name, value in model.named_parameters():
            value.requires_grad_(wanted.get(name, False))
        model.train(training)
    return products


def cosine(products: np.ndarray, one: Sequence[int], other: Sequence[int]) -> float:
    """Return the cosine between the mean gradients of two sets of responses; NaN if a mean gradient is zero."""
    inner, *lengths = (float(products[np.ix_(a, b)].mean()) for a, b in ((one, other), (one, one), (other, other)))
    scale = lengths[0] * lengths[1]
    return inner / np.sqrt(scale) if scale > 0 else float("nan")


def _gradient(model: torch.nn.Module, sequences: Sequence[Pair], parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """Return the gradient of one response's summed NLL as a flat float32 tensor."""
    device, found = parameters[0].device, []
    for pair in sequences:
        input_ids, labels, mask = (part.to(device) for part in pad_pairs([pair], 0))
        columns = (labels[0, 1:] != IGNORE).nonzero().squeeze(1)
        output = model(input_ids=input_ids, attention_mask=mask, logits_to_keep=columns, use_cache=False)
        loss = torch.nn.functional.cross_entropy(output.logits[0].float(), labels[0, 1:][columns], reduction="sum")
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
        found.append(torch.cat([part.flatten().float() for part in parts]))
    return torch.stack(found).sum(0)
