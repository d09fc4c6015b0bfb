"""Attention of one piece, forward and backward, with the log-sum-exp (lse) that is needed to merge pieces.

The backward of a piece takes the output and the log-sum-exp of the *complete* softmax, over all pieces of a query.
The weights are then p = exp(score - lse), and the score gradients are ds = p · (dp - rowsum(grad · out)), with dp the
gradient of p. They give the piece's share of the exact gradient. Sources: FlashAttention, arXiv 2205.14135,
algorithm 4; for merging, Ring Attention, arXiv 2310.01889.

Shapes everywhere: q, out and grad [1, H, n, D], k and v [1, G, m, D], lse [1, H, n]. Here n is the number of queries,
m of keys, H of query heads and G of key heads; H is a multiple of G. D is the head dimension.
"""

import torch
from torch import Tensor

HIDDEN = -1e30
"""The number added to the score of a key that is not seen. Finite, because a block of only -inf would give NaN."""

Mask = Tensor | None
"""What a piece's queries see, bool [n, m]; None where every key is seen, or where `causal` decides."""
Gradients = tuple[Tensor, Tensor, Tensor]
"""A piece's share of the gradients of q, k and v."""


class CPUFlash:
    """PyTorch's fused CPU kernel, which `scaled_dot_product_attention` uses.

    Accepts fewer key heads than query heads without copies (torch >= 2.9).
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, seen: Mask) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=_additive(seen, q), scale=self.scale
        )
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool, seen: Mask
    ) -> Gradients:
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, attn_mask=_additive(seen, q), scale=self.scale
        )
        return dq, dk, dv


def _additive(seen: Mask, like: Tensor) -> Mask:
    if seen is None:
        return None
    hidden = max(HIDDEN, torch.finfo(like.dtype).min)
    mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(~seen, hidden)[None, None]


class Explicit:
    """Plain fp32 arithmetic, one block of queries at a time. For any device, any head size and soft-capped scores."""

    block = 256

    def __init__(self, scale: float, softcap: float | None) -> None:
        self.scale = scale
        self.softcap = softcap

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, seen: Mask) -> tuple[Tensor, Tensor]:
        k, v = k[0].float(), v[0].float()
        outs, lses = [], []
        for start in range(0, q.shape[2], self.block):
            scores, _ = self._scores(q, k, start, causal, seen)
            lses.append(scores.logsumexp(-1))
            outs.append((scores - lses[-1][..., None]).exp_() @ v[:, None])
        lse = torch.cat(lses, dim=-1).flatten(0, 1)[None]
        return torch.cat(outs, dim=-2).flatten(0, 1)[None].to(q.dtype), lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool, seen: Mask
    ) -> Gradients:
        keys, values = k[0].float(), v[0].float()
        dk, dv = torch.zeros_like(keys), torch.zeros_like(values)
        dqs = []
        for start in range(0, q.shape[2], self.block):
            rows = slice(start, start + self.block)
            scores, slope = self._scores(q, keys, start, causal, seen)
            weights = (scores - self._grouped(lse[..., None], keys, rows)).exp_()
            g = self._grouped(grad, keys, rows)
            share = (g * self._grouped(out, keys, rows)).sum(-1, keepdim=True)
            dscores = weights * (g @ values[:, None].mT - share) * slope
            dqs.append(dscores @ keys[:, None])
            dk += (dscores.mT @ self._grouped(q, keys, rows)).sum(1)
            dv += (weights.mT @ g).sum(1)
        dq = torch.cat(dqs, dim=-2).flatten(0, 1)[None]
        return dq.to(q.dtype), dk[None].to(k.dtype), dv[None].to(v.dtype)

    def _grouped(self, x: Tensor, k: Tensor, rows: slice) -> Tensor:
        """Reshape [1, H, n, ...] to fp32 [G, H/G, rows, ...]."""
        return x[0, :, rows].unflatten(0, (k.shape[0], -1)).float()

    def _scores(self, q: Tensor, k: Tensor, start: int, causal: bool, seen: Mask) -> tuple[Tensor, Tensor | float]:
        """Return the scores [G, H/G, rows, m] of a block of queries, and their derivative by the dot products."""
        rows = slice(start, start + self.block)
        scores = (self._grouped(q, k, rows) @ k[:, None].mT) * self.scale
        slope: Tensor | float = self.scale
        if self.softcap is not None:
            bounded = torch.tanh_(scores / self.softcap)
            slope = self.scale * (1 - bounded.square())
            scores = bounded * self.softcap
        if causal:
            index = torch.arange(max(q.shape[2], k.shape[1]), device=q.device)
            seen = index[: k.shape[1]] <= index[: q.shape[2], None]
        if seen is not None:
            scores = scores.masked_fill(~seen[rows], HIDDEN)
        return scores, slope
