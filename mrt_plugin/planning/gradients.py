"""Compute inner products between the gradients of a prompt's responses, cheaply enough for a laptop.

The gradients are those of LoRA parameters. A model without an adapter temporarily gets an untrained one. Its matrix B
is zero, so the gradient of B is the full gradient of each linear layer times the random matrix A. On average this
preserves angles. Only the inner products of a prompt's gradients are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE
from mrt_plugin.models.log_likelihood import Model, pad_pairs

RANK = 8


def gradient_products(
    model: Model,
    groups: Sequence[Sequence[Pair]],
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[np.ndarray]:
    """Return the inner products of the gradients of each group's N responses (summed NLL), [N, N] float64.

    `seed` draws the matrix A of a model without an adapter. The model is unchanged afterwards.
    """
    products = []
    with _lora(model, seed) as (adapted, parameters):
        for pairs in groups:
            rows = torch.stack([_gradient(adapted, pair, parameters) for pair in pairs])
            products.append((rows @ rows.T).double().cpu().numpy())
            progress(len(pairs))
    return products


def cosine(products: np.ndarray, one: Sequence[int], other: Sequence[int]) -> float:
    """Return the cosine between the mean gradients of two sets of responses; NaN if a mean gradient is zero."""
    inner, *lengths = (float(products[np.ix_(a, b)].mean()) for a, b in ((one, other), (one, one), (other, other)))
    scale = lengths[0] * lengths[1]
    return inner / np.sqrt(scale) if scale > 0 else float("nan")


@contextmanager
def _lora(model: Model, seed: int) -> Iterator[tuple[torch.nn.Module, list[torch.nn.Parameter]]]:
    """Yield the model with only its LoRA parameters requiring gradients, and restore it at the end."""
    training, wanted = model.training, {name: value.requires_grad for name, value in model.named_parameters()}
    own = not isinstance(model, PeftModel)
    adapted: torch.nn.Module = model
    if own:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))  # type: ignore[arg-type]
    try:
        adapted.eval()
        for name, value in adapted.named_parameters():
            value.requires_grad_("lora_B" in name if own else "lora_" in name)
        parameters = [value for value in adapted.parameters() if value.requires_grad]
        if not parameters:
            raise ValueError(
                "The model's adapter has no LoRA parameters: audit the base model, or leave gradients out."
            )
        yield adapted, parameters
    finally:
        if own:
            adapted.unload()  # type: ignore[operator]
        for name, value in model.named_parameters():
            value.requires_grad_(wanted.get(name, False))
        model.train(training)


def _gradient(model: torch.nn.Module, pair: Pair, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """Return the gradient of one response's summed NLL as a flat float32 tensor."""
    device = parameters[0].device
    input_ids, labels, mask = (part.to(device) for part in pad_pairs([pair], 0))
    columns = (labels[0, 1:] != IGNORE).nonzero().squeeze(1)
    logits = model(input_ids=input_ids, attention_mask=mask, logits_to_keep=columns, use_cache=False).logits[0].float()
    loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:][columns], reduction="sum")
    parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([part.flatten().float() for part in parts])
