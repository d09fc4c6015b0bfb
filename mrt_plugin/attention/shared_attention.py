"""Attention over a plan of pieces, as a single operator for autograd, checkpointing and torch.compile."""

from typing import Any

import torch
from torch import Tensor

from mrt_plugin.attention.kernels import CPUFlash, Explicit, Gradients
from mrt_plugin.attention.plan import BAND, CAUSAL, Piece
from mrt_plugin.attention.varlen import CUDAFlash, from_tensors, varlen_backward, varlen_forward


def shared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: list[Tensor],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> Tensor:
    """Compute attention for R rows of T tokens, where queries see only the keys in the plan's pieces: [R, T, H, E].

    Shapes: query [R, H, T, D], key [R, G, T, D], value [R, G, T, E]; H is a multiple of G. `plan` has first the table
    of `plan.Piece`s, [pieces, 7] int64 on the CPU, then the tensors of `varlen.to_tensors` for the CUDA kernels.
    `window` applies to the BAND pieces. Scores become softcap · tanh(score / softcap). `sink` [H] are scores of a key
    without a value (GPT-OSS). Queries in no piece (padding) get 0.
    """
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"Query, key and value are {query.dtype}, {key.dtype} and {value.dtype}: train under autocast (bf16=True "
            "or fp16=True), or load the model in one type."
        )
    out: Tensor
    out, _ = torch.ops.mrt_plugin.shared_attention(query, key, value, plan, scale, window or 0, softcap or 0.0, sink)
    return out


# ---------------------------------------------------------------- pieces, for every device but CUDA's fused kernels


def _kernel(query: Tensor, value: Tensor, scale: float, softcap: float) -> CPUFlash | Explicit:
    if query.device.type == "cpu" and not softcap and query.shape[-1] == value.shape[-1]:
        return CPUFlash(scale)
    return Explicit(scale, softcap or None)


def _cut(piece: Piece, window: int, device: torch.device) -> tuple[slice, slice, slice, dict[str, Any]]:
    seen = None
    if piece.kind == BAND:
        query = torch.arange(piece.lead, piece.lead + piece.queries, device=device)
        distance = query[:, None] - torch.arange(piece.keys, device=device)
        seen = (distance >= 0) & (distance < window)
    queries = slice(piece.query, piece.query + piece.queries)
    keys = slice(piece.key, piece.key + piece.keys)
    return slice(piece.row, piece.row + 1), queries, keys, {"causal": piece.kind == CAUSAL, "seen": seen}


def _pieces_forward(
    kernel: CPUFlash | Explicit, query: Tensor, key: Tensor, value: Tensor, pieces: list[Piece], window: int
) -> tuple[Tensor, Tensor]:
    rows, heads, length, _ = query.shape
    out = query.new_zeros(rows, length, heads, value.shape[-1])
    lse = torch.full((rows, heads, length), -torch.inf, dtype=torch.float32, device=query.device)
    for piece in pieces:
        row, q, k, seen = _cut(piece, window, query.device)
        part, part_lse = kernel.forward(query[row, :, q], key[row, :, k], value[row, :, k], **seen)
        if piece.own:
            out[row, q], lse[row, :, q] = part.transpose(1, 2), part_lse
        else:
            _merge(out[row, q].transpose(1, 2), lse[row, :, q], part, part_lse.float())
    return out, lse


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge a part of the softmax in place."""
    weight = torch.sigmoid(part_lse - lse)[..., None]
    if out.dtype == torch.float32:
        out.lerp_(part, weight)
    else:
        out.copy_(torch.lerp(out.float(), part.float(), weight))
    torch.logaddexp(lse, part_lse, out=lse)


def _pieces_backward(
    kernel: CPUFlash | Explicit,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    pieces: list[Piece],
    window: int,
) -> Gradients:
    # Causal pieces contain every token once and come first. If they contain all tokens, nothing has to be zeroed.
    rows, _, length, _ = query.shape
    complete = sum(piece.queries for piece in pieces if piece.kind == CAUSAL) == rows * length
    new = torch.empty_like if complete else torch.zeros_like
    # A prompt's keys get a gradient from every segment. The sum is taken in fp32.
    dquery, dkey, dvalue = (new(x, dtype=torch.float32) for x in (query, key, value))
    for piece in pieces:
        row, q, k, seen = _cut(piece, window, query.device)
        inputs = query[row, :, q], key[row, :, k], value[row, :, k]
        outputs = out[row, q].transpose(1, 2), lse[row, :, q]
        parts = kernel.backward(grad[row, q].transpose(1, 2), *inputs, *outputs, **seen)
        for total, where, part in zip((dquery, dkey, dvalue), (q, k, k), parts, strict=True):
            if piece.kind == CAUSAL:
                total[row, :, where] = part
            else:
                total[row, :, where] += part
    return dquery.to(query.dtype), dkey.to(key.dtype), dvalue.to(value.dtype)


# ---------------------------------------------------------------- the operator


@torch.library.custom_op("mrt_plugin::shared_attention", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: list[Tensor],
    scale: float,
    window: int,
    softcap: float,
    sink: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if CUDAFlash.takes(query, value, softcap):
        out, lse = varlen_forward(CUDAFlash(scale), query, key, value, from_tensors(plan[1:]), window or None)
    else:
        kernel = _kernel(query, value, scale, softcap)
        out, lse = _pieces_forward(kernel, query, key, value, _pieces(plan), window)
    if sink is not None:
        weight = torch.sigmoid(lse - sink.float()[:, None])  # share of the real keys; the rest is the sink's
        out.mul_(weight.transpose(1, 2)[..., None])
        lse = torch.logaddexp(lse, sink.float()[:, None])
    return out, lse


def _pieces(plan: list[Tensor]) -> list[Piece]:
    return [Piece(*numbers) for numbers in plan[0].tolist()]


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows, heads, length, _size = query.shape
    out = query.new_empty(rows, length, heads, value.shape[-1])
    return out, query.new_empty(rows, heads, length, dtype=torch.float32)


@torch.library.custom_op("mrt_plugin::shared_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: list[Tensor],
    scale: float,
    window: int,
    softcap: float,
    sink: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = grad.contiguous(), query, key, value, out, lse
    if CUDAFlash.takes(query, value, softcap):
        gradients = varlen_backward(CUDAFlash(scale), *tensors, from_tensors(plan[1:]), window or None)
    else:
        gradients = _pieces_backward(_kernel(query, value, scale, softcap), *tensors, _pieces(plan), window)
    if sink is None:
        return *gradients, query.new_empty(0)
    share = (grad.float() * out.float()).sum(-1).transpose(1, 2)  # [R, H, T]
    return *gradients, -(torch.exp(sink.float()[:, None] - lse) * share).sum((0, 2)).to(sink.dtype)


@_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sink = rest[-1]
    dsink = query.new_empty(0) if sink is None else torch.empty_like(sink)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), dsink


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, key, value, plan, ctx.scale, ctx.window, ctx.softcap, sink = inputs
    ctx.save_for_backward(query, key, value, *output, sink, *plan)


def _gradients(ctx, grad, _grad_lse):  # type: ignore[no-untyped-def]
    query, key, value, out, lse, sink, *plan = ctx.saved_tensors
    dq, dk, dv, dsink = torch.ops.mrt_plugin.shared_attention_backward(
        grad, query, key, value, out, lse, plan, ctx.scale, ctx.window, ctx.softcap, sink
    )
    return dq, dk, dv, [None] * len(plan), None, None, None, None if sink is None else dsink


_forward.register_autograd(_gradients, setup_context=_save)
