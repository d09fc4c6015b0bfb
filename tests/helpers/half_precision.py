"""Shared attention in half precision against plain arithmetic in fp32, on any device.

The tolerance comes from the case itself: plain arithmetic in the same half precision is compared with fp32 as well,
and a fused kernel may err up to three times as much (the rule of FlashAttention's own tests, for the largest error).
Errors are root mean squares: the largest of some thousand errors depends on chance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.families import PAD, random_group
from helpers.trees import deep_rows, random_forest
from mrt_plugin.attention.masks import visible
from mrt_plugin.attention.shared_attention import shared_attention
from mrt_plugin.attention.two_part import RowPlan
from mrt_plugin.layout.group_row import GroupRow
from mrt_plugin.layout.rows import Rows, build_rows

FACTOR, FLOOR = 3.0, 1e-5
"""An error may be this many times that of plain half precision, plus this."""

PACKED: dict[str, list[list[GroupRow]]] = {
    "groups": [[random_group(157, [33, 150, 1]), random_group(2, [4])], [random_group(200, [21, 90])]],
    "trees": [*deep_rows(), random_forest(3, depth=5, longest=40)],
}


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    size: int
    heads: int = 4
    key_heads: int = 4
    window: int | None = None
    sink: bool = False
    rows: str = "groups"

    def __str__(self) -> str:
        heads = f"{self.heads}of{self.key_heads}"
        return f"{str(self.dtype)[6:]}-{self.size}-{heads}-window{self.window}-sink{int(self.sink)}-{self.rows}"


CASES = [
    Case(dtype, size, heads, key_heads, window, sink, rows)
    for dtype in (torch.bfloat16, torch.float16)
    for size in (64, 96, 128, 256)
    for heads, key_heads, window, sink, rows in (
        (4, 4, None, False, "groups"),
        (8, 2, None, False, "trees"),
        (8, 2, 40, False, "groups"),
        (4, 4, 9, True, "trees"),
        (8, 2, None, True, "groups"),
    )
]


def inputs(case: Case, rows: Rows, device: str) -> list[Tensor]:
    """Return query, key and value as transformers makes them, the gradient of the output, and the sinks."""
    generator = torch.Generator().manual_seed(0)
    count, width = rows.input_ids.shape

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, case.dtype)

    q, k, v = (draw(count, width, n, case.size).transpose(1, 2) for n in (case.heads, case.key_heads, case.key_heads))
    grad = draw(count, width, case.heads, case.size) * rows.attention_mask[..., None, None].to(case.dtype)
    return [q, k, v, grad, draw(case.heads)]


def plain(case: Case, rows: Rows, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the output and the gradients of query, key, value and sinks, by the rule, in `dtype`."""
    query, key, value, grad, sinks = (x.detach().to(dtype) for x in tensors)
    leaves = [x.requires_grad_() for x in (query, key, value, sinks)]
    copies = case.heads // case.key_heads
    scores = query @ key.repeat_interleave(copies, 1).mT * case.size**-0.5
    scores = scores.masked_fill(~visible(rows, window=case.window), -torch.inf)
    if case.sink:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    real = rows.attention_mask[..., None, None].to(dtype)
    out = (weights @ value.repeat_interleave(copies, 1)).transpose(1, 2) * real
    wanted = leaves if case.sink else leaves[:3]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def fused(case: Case, rows: Rows, tensors: list[Tensor]) -> list[Tensor]:
    """Return the same by `shared_attention`."""
    leaves = [x.detach().requires_grad_() for x in (*tensors[:3], tensors[4])]
    plan, window = RowPlan(rows, case.window).of(case.window)
    sink = leaves[3] if case.sink else None
    out = shared_attention(*leaves[:3], plan, scale=case.size**-0.5, window=window, sink=sink)
    return [out.detach(), *torch.autograd.grad(out, leaves if case.sink else leaves[:3], tensors[3])]


def compare(case: Case, device: str) -> dict[str, tuple[float, float]]:
    """Return the root mean square error of the output and of each gradient, beside that of plain half precision."""
    built = build_rows(PACKED[case.rows], PAD)
    rows = Rows.from_batch({name: value.to(device) for name, value in built.to_batch().items()})
    tensors = inputs(case, rows, device)
    exact = plain(case, rows, tensors, torch.float32)
    half = plain(case, rows, tensors, case.dtype)
    found = fused(case, rows, tensors)
    names = ("output", "query", "key", "value", "sinks")
    return {
        name: (
            float((ours.float() - right).square().mean().sqrt()),
            float((theirs.float() - right).square().mean().sqrt()),
        )
        for name, ours, theirs, right in zip(names, found, half, exact, strict=False)
    }


def check(case: Case, device: str) -> dict[str, tuple[float, float]]:
    """Compare, and fail where an error is beyond its tolerance."""
    errors = compare(case, device)
    assert len(errors) == 4 + case.sink
    for name, (ours, theirs) in errors.items():
        assert ours <= FACTOR * theirs + FLOOR, f"{case}: {name} errs by {ours:.3g}, plain arithmetic by {theirs:.3g}"
    return errors
