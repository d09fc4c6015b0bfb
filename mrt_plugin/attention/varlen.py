"""The plan of a batch for kernels that take many sequences of any length in one call, like FlashAttention on CUDA.

Full attention takes one call for all runs on themselves, and one per level of the tree: the descendants of each inner
run of that level on its keys. The results are merged by their log-sum-exp, and no key is copied. A sliding layer takes
one call: each run's keys then include the few keys of its ancestors that its window reaches.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mrt_plugin.attention.kernels import Gradients
from mrt_plugin.attention.plan import Run


class Call(NamedTuple):
    """One call of a kernel: S sequences of queries, each with its keys."""

    longest_query: int
    longest_key: int
    causal: bool
    """Whether query i of a sequence of n queries and m keys sees only the keys up to i + m - n. With a window, the
    query sees only the last `window` of these keys."""
    query_index: Tensor
    """[n] int64: the queries of all sequences, as indices of the flattened rows. No query is in a call twice."""
    key_index: Tensor
    """[m] int64: the keys of all sequences. A key may be in several sequences."""
    query_ends: Tensor
    """[S + 1] int32: the cumulative boundaries of the sequences' queries."""
    key_ends: Tensor
    """[S + 1] int32: the same for the keys."""


def calls(runs: list[Run], width: int, device: torch.device, window: int | None = None) -> list[Call]:
    """Return the calls of a batch of rows of `width` tokens. The first call contains every query."""
    tokens = [range(run.row * width + run.start, run.row * width + run.stop) for run in runs]
    if window is not None:
        own = [(mine, [*_reach(runs, tokens, number, window - 1), mine]) for number, mine in enumerate(tokens)]
        return [_call(own, True, device)]
    levels: list[list[tuple[range, list[range]]]] = []
    depths: list[int] = []
    for number, run in enumerate(runs):
        depths.append(0 if run.parent < 0 else depths[run.parent] + 1)
        if run.stop < run.end:
            levels += [[] for _ in range(depths[number] + 1 - len(levels))]
            levels[depths[number]].append((range(tokens[number].stop, run.row * width + run.end), [tokens[number]]))
    return [
        _call([(mine, [mine]) for mine in tokens], True, device),
        *(_call(level, False, device) for level in levels),
    ]


def _reach(runs: list[Run], tokens: list[range], number: int, keys: int) -> list[range]:
    """Return the last tokens of a run's ancestors, at most `keys`, in the order of their positions."""
    found: list[range] = []
    above = runs[number].parent
    while above >= 0 and keys > 0:
        found.append(tokens[above][-keys:])
        keys -= len(tokens[above])
        above = runs[above].parent
    return found[::-1]


def _call(sequences: list[tuple[range, list[range]]], causal: bool, device: torch.device) -> Call:
    queries = [len(query) for query, _ in sequences]
    keys = [sum(len(part) for part in parts) for _, parts in sequences]
    return Call(
        max(queries),
        max(keys),
        causal,
        _index([query for query, _ in sequences], device),
        _index([part for _, parts in sequences for part in parts], device),
        *(torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32) for lengths in (queries, keys)),
    )


def _index(ranges: list[range], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(part.start, part.stop) for part in ranges]).to(device)


def to_tensors(planned: list[Call]) -> list[Tensor]:
    """Return the calls as tensors, for an operator: per call its numbers (on the CPU), then four index tensors."""
    return [tensor for call in planned for tensor in (torch.tensor([int(number) for number in call[:3]]), *call[3:])]


def from_tensors(tensors: list[Tensor]) -> list[Call]:
    found = [tensors[start : start + 5] for start in range(0, len(tensors), 5)]
    return [Call(*numbers.tolist(), *indices) for numbers, *indices in found]


def varlen_forward(
    kernel: "CUDAFlash", query: Tensor, key: Tensor, value: Tensor, planned: list[Call], window: int | None
) -> tuple[Tensor, Tensor]:
    """Return the output [R, T, H, D] and the log-sum-exp [R, H, T] for queries [R, H, T, D] and keys [R, G, T, D]."""
    rows, heads, width, size = query.shape
    q, k, v = _flat(query), _flat(key), _flat(value)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = torch.full((heads, rows * width), -torch.inf, dtype=torch.float32, device=query.device)
    for number, call in enumerate(planned):
        where = call.query_index
        part, part_lse = kernel.forward(q[where], k[call.key_index], v[call.key_index], call, window)
        if number > 0:
            before, before_lse = out[where], lse[:, where]
            weight = torch.sigmoid(part_lse - before_lse).T[..., None]
            part = torch.lerp(before.float(), part.float(), weight).to(out.dtype)
            part_lse = torch.logaddexp(before_lse, part_lse)
        out[where], lse[:, where] = part, part_lse
    return out.view(rows, width, heads, size), lse.view(heads, rows, width).transpose(0, 1).contiguous()


def varlen_backward(
    kernel: "CUDAFlash",
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    planned: list[Call],
    window: int | None,
) -> Gradients:
    """Return the gradients of query, key and value, each with the shape and strides of its tensor."""
    q, k, v = _flat(query), _flat(key), _flat(value)
    grad, out = grad.flatten(0, 1), out.flatten(0, 1)
    lse = lse.transpose(0, 1).flatten(1)
    # A prompt's keys get a gradient from every segment. The sum is taken in fp32.
    dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v))
    for call in planned:
        where, keys = call.query_index, call.key_index
        outputs = out[where], lse[:, where].contiguous()
        parts = kernel.backward(grad[where], q[where], k[keys], v[keys], *outputs, call, window)
        for total, index, part in zip((dq, dk, dv), (where, keys, keys), parts, strict=True):
            total.index_add_(0, index, part.float())
    return _like(dq, query), _like(dk, key), _like(dv, value)


def _flat(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _like(flat: Tensor, x: Tensor) -> Tensor:
    """Convert [R·T, H, D] to the shape, strides and dtype of x [R, H, T, D]."""
    return torch.empty_like(x).copy_(flat.view(x.shape[0], x.shape[2], *flat.shape[1:]).transpose(1, 2))


class CUDAFlash:
    """PyTorch's FlashAttention on CUDA for one call: q, out [n, H, D], k, v [m, G, D], lse [H, n] in fp32.

    As in `mrt_plugin.attention.kernels`, the backward takes the output and the log-sum-exp of the complete softmax.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    @staticmethod
    def takes(query: Tensor, value: Tensor, softcap: float) -> bool:
        if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16) or softcap:
            return False
        size, capability = query.shape[-1], torch.cuda.get_device_capability(query.device)
        return size == value.shape[-1] and CUDAFlash.fits(size, capability)

    @staticmethod
    def fits(head_size: int, capability: tuple[int, int]) -> bool:
        """Return whether a card of this compute capability has the kernel and its backward for this head size."""
        # Consumer cards have too little shared memory for the backward of the largest heads (PyTorch's sdp_utils.cpp).
        largest = 192 if capability in ((8, 6), (8, 9), (12, 0)) else 256
        return capability >= (8, 0) and head_size % 8 == 0 and head_size <= largest

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: Call, window: int | None) -> tuple[Tensor, Tensor]:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(q, k, v, call.query_ends, call.key_ends, call.longest_query, call.longest_key),
            0.0,
            bool(call.causal and window is None),
            return_debug_mask=False,
            scale=self.scale,
            **_window(window),
        )
        return out, lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        call: Call,
        window: int | None,
    ) -> Gradients:
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            *(grad, q, k, v, out, lse, call.query_ends, call.key_ends, call.longest_query, call.longest_key),
            0.0,
            bool(call.causal and window is None),
            torch.zeros(2, dtype=torch.uint64, device=q.device),  # the random state of dropout, which is not used
            torch.empty(0, device=q.device),
            scale=self.scale,
            **_window(window),
        )
        return dq, dk, dv


def _window(window: int | None) -> dict[str, int]:
    """Return the window arguments of the kernel. The window ends at the query itself, so attention is causal."""
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
