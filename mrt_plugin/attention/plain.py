"""The plain forward used as the reference, and a measurement of how much it depends on the shape of a batch."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mrt_plugin.attention.backend import Backend, Compute, ExpandedBackend, OneByOneBackend
from mrt_plugin.attention.family import set_text_attention, text_attention
from mrt_plugin.layout.group_row import GroupRow, expand, sequences_of
from mrt_plugin.layout.rows import Rows, stack
from mrt_plugin.layout.tree import build_tree

logger = logging.getLogger(__name__)

LONGEST = 3
"""Number of pairs of a row that are compared, the longest ones. The last pair of the row is compared as well."""
PADDED = 8
"""Tokens of padding after the longest of them, so that every row has some padding."""
NOISE_FACTOR, NOISE_FLOOR, ROUNDING = 5.0, 1e-4, 8.0
"""The tolerance of a comparison is at least the plain forward's own noise times the first, the second in nats, and the
third times the spacing of the numbers that the model computes in."""
CEILING, CEILING_FLOOR = 32.0, 3e-4
"""The tolerance is never more than the larger of the first times that spacing and the second in nats.

On random Llamas of 4 and 8 layers, another batch shape changed the plain forward by up to 1.6 spacings in bfloat16,
3.3 in float16, and 2.8e-6 nats in float32. `sdpa` differed from `eager` by up to 6.7 spacings. So the ceiling leaves
room for deeper models, and an error of a tenth of a nat is not accepted as rounding in float16."""
EIGHT_BITS = 2.0**-7
"""The spacing of 8-bit weights and activations."""


@dataclass(frozen=True)
class PlainForward:
    """The NLL of some pairs through the plain forward, and how much it changes with the shape of the batch."""

    attention: str
    nll: Tensor
    """[tokens] float64: the NLL of the trained tokens, each pair in its own forward."""
    noise: float
    """Root mean square of the change over those tokens, in nats."""
    spacing: float
    """Distance from 1 to the next larger number that the model computes with."""

    @property
    def ceiling(self) -> float:
        """The largest change in nats that rounding explains."""
        return max(CEILING_FLOOR, CEILING * self.spacing)

    @property
    def steady(self) -> bool:
        return self.noise <= self.ceiling

    @property
    def tolerance(self) -> float:
        return min(max(NOISE_FACTOR * self.noise, NOISE_FLOOR, ROUNDING * self.spacing), self.ceiling)

    @property
    def finding(self) -> str:
        return (
            f"with attn_implementation={self.attention}, the per-token NLL of a real group moves by {self.noise:.1e} "
            f"nats with the shape of the batch and its padding, where rounding explains {self.ceiling:.1e}"
        )


def compared(pairs: Sequence[GroupRow]) -> list[int]:
    """Return the indices of the pairs that are compared."""
    ranked = sorted(range(len(pairs)), key=lambda index: -len(pairs[index]["input_ids"]))
    return sorted({*ranked[:LONGEST], len(pairs) - 1})


def settle_plain(model: Any, row: Sequence[GroupRow], compute: Compute, pad_token_id: int) -> PlainForward:
    """Measure whether the plain forward depends on the shape of its batch. Use `eager` if only that does not.

    If the result is not `steady`, no attention helps: train one pair per forward.
    """
    every = list(chain.from_iterable(map(expand, row)))
    pairs = [every[index] for index in compared(every)]
    own = text_attention(model)
    found = measure_plain(model, pairs, compute, pad_token_id)
    if found.steady or found.attention == "eager":
        return found
    set_text_attention(model, "eager")
    eager = measure_plain(model, pairs, compute, pad_token_id)
    if not eager.steady:
        set_text_attention(model, own)
        return found
    logger.warning(
        "%s: %s. Its attention is set to eager, which moves by %.1e: it takes more memory and time.",
        model.config.model_type,
        found.finding,
        eager.noise,
    )
    return eager


def measure_plain(model: Any, pairs: list[GroupRow], compute: Compute, pad_token_id: int) -> PlainForward:
    """Compare the plain forward of each pair alone with that of a padded batch of them."""
    plain, alone = ExpandedBackend(), OneByOneBackend()
    rows = [[pair] for pair in pairs]
    longest = max(len(pair["input_ids"]) for pair in pairs)
    plain.prepare_model(model)
    try:
        with inference(model):
            expected = torch.cat(packed_nll(model, alone, rows, compute, pad_token_id))
            moved = torch.cat(packed_nll(model, plain, rows, compute, pad_token_id, longest + PADDED))
        attention = text_attention(model)
    finally:
        plain.restore_model(model)
    return PlainForward(attention, expected, rms(moved - expected), _spacing(model))


def packed_nll(
    model: Any,
    backend: Backend,
    packed: Sequence[Sequence[GroupRow]],
    compute: Compute,
    pad_token_id: int,
    pad_to_multiple_of: int | None = None,
) -> list[Tensor]:
    """Return the NLL of each sequence's trained tokens, in the order of the sequences: float64 on the CPU."""
    members = [[sequence for group in groups for sequence in sequences_of(group)] for groups in packed]
    trees = [build_tree(sequences) for sequences in members]
    rows = on_device(stack(trees, pad_token_id, pad_to_multiple_of=pad_to_multiple_of), model)
    nll = backend.token_nll(model, rows, compute).double().cpu()
    return [
        nll[row, path[:-1][sequence.trained[1:]]]
        for row, (sequences, tree) in enumerate(zip(members, trees, strict=True))
        for sequence, path in zip(sequences, tree.paths, strict=True)
    ]


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def on_device(rows: Rows, model: Any) -> Rows:
    return Rows.from_batch({name: value.to(model.device) for name, value in rows.to_batch().items()})


def _spacing(model: Any) -> float:
    """Return the spacing of the least precise numbers that the forward computes in."""
    device = model.device.type
    types = {parameter.dtype for parameter in model.parameters()}
    floats = {dtype for dtype in types if dtype.is_floating_point and dtype.itemsize > 1}
    if torch.is_autocast_enabled(device):
        floats.add(torch.get_autocast_dtype(device))
    if getattr(model, "is_loaded_in_4bit", False):
        floats.add(model.config.quantization_config.bnb_4bit_compute_dtype)
    spacing = max(torch.finfo(dtype).eps for dtype in floats)
    if device == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        spacing = max(spacing, torch.finfo(torch.float16).eps)  # both have ten bits
    return max(spacing, EIGHT_BITS) if torch.int8 in types else spacing


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Run in evaluation mode without gradients, then restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    if getattr(model, "is_loaded_in_4bit", False):
        from bitsandbytes.nn import Linear4bit

        # On CPU these layers repack their weights permanently at the first forward in evaluation mode. From then on
        # they compute differently, also in training.
        for module, _ in modes:
            if isinstance(module, Linear4bit):
                module.training = True
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
