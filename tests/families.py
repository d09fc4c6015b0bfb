"""Tiny random models of many families, and the comparisons that the attention tests make."""

import random
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mrt_plugin.attention.backend import Compute
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE, GroupRow, build_group_row, expand
from mrt_plugin.layout.rows import Rows, build_rows

VOCABULARY = 96
PAD = 0
WINDOW = 9
"""Shorter than the rows that the tests build, so that a window taken on row indices shows."""

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": PAD,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
}


def build(name: str, **changes: Any) -> PreTrainedModel:
    """A random fp32 model of the family, the same at every call, in training mode."""
    settings = {**SMALL, **FAMILIES[name], **changes}
    model_type = settings.pop("model_type", name)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    return model.train()


def plain_compute(model: torch.nn.Module) -> Compute:
    """A `compute` that holds all logits: slow, short and obviously right."""

    def compute(forward_kwargs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        logits = model(**forward_kwargs).logits.float()
        nll = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="none"
        )
        return torch.nn.functional.pad(nll.view(labels.shape[0], -1), (1, 0))

    return compute


def random_group(prompt: int, responses: list[int], seed: int = 0) -> GroupRow:
    """A group of random tokens: `prompt` shared tokens, then a response of each length."""
    rng = random.Random(f"{seed} {prompt} {responses}")
    shared = [rng.randrange(3, VOCABULARY) for _ in range(prompt)]
    pairs = []
    for index, length in enumerate(responses):
        # Different first tokens keep the shared prompt from growing into the responses.
        own = [3 + index % (VOCABULARY - 3)] + [rng.randrange(3, VOCABULARY) for _ in range(length - 1)]
        pairs.append(Pair(shared + own, [False] * prompt + [True] * length))
    return build_group_row(pairs)


def one_by_one(model: torch.nn.Module, groups: list[GroupRow]) -> torch.Tensor:
    """The summed weighted NLL of the groups' pairs, each in a plain forward of its own."""
    compute = plain_compute(model)
    total = torch.zeros(())
    for group in groups:
        for pair in expand(group):
            rows = build_rows([[pair]], PAD)
            nll = compute({"input_ids": rows.input_ids}, rows.labels)
            total = total + (nll * rows.loss_weights).sum()
    return total


def gradient(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the gradient of all trainable parameters as one vector."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    flat = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    return value.detach(), torch.cat(flat).double()


def rows_loss(backend: Any, model: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """The summed weighted NLL of rows through a backend."""
    nll: torch.Tensor = backend.token_nll(model, rows, plain_compute(model))
    return (nll * rows.loss_weights).sum()


def assert_equivalent(
    backend: Any, name: str, packed: list[list[GroupRow]], *, padding_side: str = "right", **changes: Any
) -> None:
    """The backend's loss and gradient on packed rows are those of one pair at a time: 1e-5, and 1e-4 of the norm."""
    groups = [group for row in packed for group in row]
    reference = build(name, **{"attn_implementation": "eager", **changes})
    expected, expected_gradient = gradient(reference, lambda: one_by_one(reference, groups))
    model = build(name, **changes)
    backend.prepare_model(model)
    rows = build_rows(packed, PAD, padding_side=padding_side)
    found, found_gradient = gradient(model, lambda: rows_loss(backend, model, rows))
    assert abs(found / expected - 1) < 1e-5
    assert (found_gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
