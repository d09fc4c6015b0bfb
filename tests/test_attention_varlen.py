"""The plan for CUDA's kernels, with plain arithmetic in the kernel's place: what meets what, and merging.

How PyTorch's CUDA kernel is called, `test_attention_cuda_calls.py` checks.
"""

from typing import Any

import pytest
import torch
from helpers.families import PAD, random_group
from helpers.trees import random_forest

from mrt_plugin.attention.kernels import Explicit
from mrt_plugin.attention.masks import visible
from mrt_plugin.attention.plan import find_runs
from mrt_plugin.attention.varlen import Call, calls, from_tensors, to_tensors, varlen_backward, varlen_forward
from mrt_plugin.layout.group_row import GroupRow
from mrt_plugin.layout.rows import build_rows

PACKED = [[random_group(9, [3, 7, 1]), random_group(4, [6])], [random_group(1, [5, 2]), random_group(12, [2, 8])]]


class PlainVarlen:
    """FlashAttention's conventions in plain arithmetic: bottom-right aligned masks, one sequence after the other."""

    def _sequences(self, call: Call, window: int | None) -> Any:
        queries, keys = call.query_ends.tolist(), call.key_ends.tolist()
        for number in range(len(queries) - 1):
            q, k = slice(queries[number], queries[number + 1]), slice(keys[number], keys[number + 1])
            n, m = q.stop - q.start, k.stop - k.start
            assert n <= call.longest_query
            assert m <= call.longest_key
            distance = torch.arange(n)[:, None] + m - n - torch.arange(m)
            seen = torch.ones(n, m, dtype=torch.bool)
            if call.causal:
                seen &= distance >= 0
            if window is not None:
                seen &= distance < window
            yield q, k, seen

    def forward(self, q: Any, k: Any, v: Any, call: Call, window: int | None) -> Any:
        parts = []
        for i, j, seen in self._sequences(call, window):
            one = [x.transpose(0, 1)[None] for x in (q[i], k[j], v[j])]
            parts.append(Explicit(0.6, None).forward(*one, causal=False, seen=seen))
        return torch.cat([out[0].transpose(0, 1) for out, _ in parts]), torch.cat([lse[0] for _, lse in parts], dim=1)

    def backward(
        self, grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, call: Call, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for i, j, seen in self._sequences(call, window):
            parts = Explicit(0.6, None).backward(
                grad[i].transpose(0, 1)[None],
                q[i].transpose(0, 1)[None],
                k[j].transpose(0, 1)[None],
                v[j].transpose(0, 1)[None],
                out[i].transpose(0, 1)[None],
                lse[None, :, i],
                causal=False,
                seen=seen,
            )
            for total, where, part in zip((dq, dk, dv), (i, j, j), parts, strict=True):
                total[where] += part[0].transpose(0, 1)
        return dq, dk, dv


FOREST = [random_forest(seed, depth=5, vocabulary=12) for seed in (1, 2)]


@pytest.mark.parametrize("window", [None, 1, 4, 9])
@pytest.mark.parametrize(("packed", "levels"), [(PACKED, 2), (FOREST, 5)])
def test_forward_and_backward(packed: list[list[GroupRow]], levels: int, window: int | None) -> None:
    torch.manual_seed(0)
    rows = build_rows(packed, PAD)
    count, width = rows.input_ids.shape
    q, k, v = (torch.randn(count, heads, width, 8, requires_grad=True) for heads in (4, 2, 2))
    planned = from_tensors(to_tensors(calls(find_runs(rows), width, torch.device("cpu"), window)))
    assert len(planned) == (levels if window is None else 1)
    out, lse = varlen_forward(PlainVarlen(), q.detach(), k.detach(), v.detach(), planned, window)

    scores = (q @ k.repeat_interleave(2, 1).mT * 0.6).masked_fill(~visible(rows, window=window), -torch.inf)
    real = rows.attention_mask[..., None, None]
    expected = (scores.softmax(-1) @ v.repeat_interleave(2, 1)).transpose(1, 2) * real
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out) * real
    found = varlen_backward(PlainVarlen(), grad, q.detach(), k.detach(), v.detach(), out, lse, planned, window)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (q, k, v), grad), rtol=1e-4, atol=1e-5)


def test_every_real_query_is_in_the_first_call_once() -> None:
    rows = build_rows(PACKED, PAD)
    for window in (None, 4):
        first = calls(find_runs(rows), rows.input_ids.shape[1], torch.device("cpu"), window)[0]
        assert torch.equal(first.query_index.sort().values, torch.nonzero(rows.attention_mask.flatten()).flatten())
