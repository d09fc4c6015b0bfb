"""Attention over a plan of pieces, as a single operator for autograd, checkpointing and torch.compile."""

import torch

from mrt_plugin.attention.kernels import CPUFlash, Explicit, Kernel
from mrt_plugin.attention.plan import BAND, CAUSAL, Piece
from mrt_plugin.attention.varlen import CUDAFlash, from_tensors, varlen_backward, varlen_forward


def shared_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: list[torch.Tensor],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute attention for R rows of T tokens, where queries see only the keys in the plan's pieces.

    Saves the same tensors for the backward pass as FlashAttention: the inputs, the output and one number per query
    and head.

    Args:
        query: [R, H, T, D], with H heads of dimension D.
        key: [R, G, T, D], with G key heads; H is a multiple of G.
        value: [R, G, T, E], with heads of dimension E.
        plan: first the table of `mrt_plugin.attention.plan.Piece`s, [pieces, 7] int64 on the CPU. For the CUDA
            kernels, then the result of `mrt_plugin.attention.varlen.to_tensors` for the same rows.
        scale: factor of the dot products.
        window: number of positions that a query of a BAND piece sees.
        softcap: scores become softcap · tanh(score / softcap).
        sink: [H] scores of a key that takes part in the softmax and has no value (GPT-OSS).

    Returns:
        [R, T, H, E]; 0 where the query is in no piece (padding).

    Raises:
        TypeError: if query, key and value have different dtypes, as for `scaled_dot_product_attention`.
    """
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"Query, key and value are {query.dtype}, {key.dtype} and {value.dtype}: train under autocast (bf16=True "
            "or fp16=True), or load the model in one type."
        )
    out: torch.Tensor
    out, _ = torch.ops.mrt_plugin.shared_attention(query, key, value, plan, scale, window or 0, softcap or 0.0, sink)
    return out


def _kernel(query: torch.Tensor, value: torch.Tensor, scale: float, softcap: float) -> Kernel:
    if query.device.type == "cpu" and not softcap and query.shape[-1] == value.shape[-1]:
        return CPUFlash(scale)
    return Explicit(scale, softcap or None)


def _pieces(table: torch.Tensor) -> list[Piece]:
    return [Piece(*numbers) for numbers in table.tolist()]


def _seen(piece: Piece, window: int, device: torch.device) -> torch.Tensor | None:
    if piece.kind != BAND:
        return None
    query = torch.arange(piece.lead, piece.lead + piece.queries, device=device)
    distance = query[:, None] - torch.arange(piece.keys, device=device)
    return (distance >= 0) & (distance < window)


@torch.library.custom_op("mrt_plugin::shared_attention", mutates_args=())
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: list[torch.Tensor],
    scale: float,
    window: int,
    softcap: float,
    sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if CUDAFlash.takes(query, value, softcap):
        out, lse = varlen_forward(CUDAFlash(scale), query, key, value, from_tensors(plan[1:]), window or None)
    else:
        out, lse = _pieces_forward(query, key, value, plan[0], scale, window, softcap)
    if sink is not None:
        weight = torch.sigmoid(lse - sink.float()[:, None])  # share of the real keys; the rest is the sink's
        out.mul_(weight.transpose(1, 2)[..., None])
        lse = torch.logaddexp(lse, sink.float()[:, None])
    return out, lse


def _pieces_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, length, _ = query.shape
    out = query.new_zeros(rows, length, heads, value.shape[-1])
    lse = torch.full((rows, heads, length), -torch.inf, dtype=torch.float32, device=query.device)
    kernel = _kernel(query, value, scale, softcap)
    for piece in _pieces(table):
        row, q, k = _slices(piece)
        part, part_lse = kernel.forward(
            query[row, :, q],
            key[row, :, k],
            value[row, :, k],
            causal=piece.kind == CAUSAL,
            seen=_seen(piece, window, query.device),
        )
        if piece.own:
            out[row, q], lse[row, :, q] = part.transpose(1, 2), part_lse
        else:
            _merge(out[row, q].transpose(1, 2), lse[row, :, q], part, part_lse.float())
    return out, lse


def _slices(piece: Piece) -> tuple[slice, slice, slice]:
    return (
        slice(piece.row, piece.row + 1),
        slice(piece.query, piece.query + piece.queries),
        slice(piece.key, piece.key + piece.keys),
    )


def _merge(out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Merge a part of the softmax in place: out and part [1, H, n, E], lse and part_lse [1, H, n]."""
    weight = torch.sigmoid(part_lse - lse)[..., None]
    if out.dtype == torch.float32:
        out.lerp_(part, weight)
    else:
        out.copy_(torch.lerp(out.float(), part.float(), weight))
    torch.logaddexp(lse, part_lse, out=lse)


@_forward.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: list[torch.Tensor],
    scale: float,
    window: int,
    softcap: float,
    sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, length, _ = query.shape
    out = query.new_empty(rows, length, heads, value.shape[-1])
    return out, query.new_empty(rows, heads, length, dtype=torch.float32)


@torch.library.custom_op("mrt_plugin::shared_attention_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    plan: list[torch.Tensor],
    scale: float,
    window: int,
    softcap: float,
    sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    grad = grad.contiguous()
    if CUDAFlash.takes(query, value, softcap):
        planned = from_tensors(plan[1:])
        gradients = varlen_backward(CUDAFlash(scale), grad, query, key, value, out, lse, planned, window or None)
    else:
        gradients = _pieces_backward(grad, query, key, value, out, lse, plan[0], scale, window, softcap)
    if sink is None:
        dsink = query.new_empty(0)
    else:
        share = (grad.float() * out.float()).sum(-1).transpose(1, 2)  # [R, H, T]
        dsink = -(torch.exp(sink.float()[:, None] - lse) * share).sum((0, 2)).to(sink.dtype)
    return *gradients, dsink


def _pieces_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    table: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kernel, pieces = _kernel(query, value, scale, softcap), _pieces(table)
    # Causal pieces contain every token once and come first. If they contain all tokens, nothing has to be zeroed.
    rows, _, length, _ = query.shape
    complete = sum(piece.queries for piece in pieces if piece.kind == CAUSAL) == rows * length
    new = torch.empty_like if complete else torch.zeros_like
    dquery, dkey, dvalue = new(query), new(key), new(value)
    for piece in pieces:
        row, q, k = _slices(piece)
        dq, dk, dv = kernel.backward(
            grad[row, q].transpose(1, 2),
            query[row, :, q],
            key[row, :, k],
            value[row, :, k],
            out[row, q].transpose(1, 2),
            lse[row, :, q],
            causal=piece.kind == CAUSAL,
            seen=_seen(piece, window, query.device),
        )
        for total, where, part in ((dquery, q, dq), (dkey, k, dk), (dvalue, k, dv)):
            if piece.kind == CAUSAL:
                total[row, :, where] = part
            else:
                total[row, :, where] += part
    return dquery, dkey, dvalue


@_backward.register_fake
def _(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    plan: list[torch.Tensor],
    scale: float,
    window: int,
    softcap: float,
    sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
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
