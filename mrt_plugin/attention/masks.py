"""The backends that pass a mask: `dense` (one 4-D mask per kind of layer) and `flex` (FlexAttention's block mask)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from mrt_plugin.attention.backend import Compute, OneForward
from mrt_plugin.attention.family import NotShareable, exact_attention, refuse_dropout, text_attention
from mrt_plugin.layout.group_row import IGNORE
from mrt_plugin.layout.rows import Rows

BLOCK = 128
"""FlexAttention's block size. Rows are padded to a multiple of it, so that fewer shapes are compiled."""


def visibility(rows: Rows, *, window: int | None = None, chunk: int | None = None) -> Callable[..., Tensor]:
    """Return the rule that every shared-prefix backend implements: which token may attend to which.

    A query sees its own run of the tree up to itself, and its ancestors' runs: the keys k with `k <= q < ends[k]`
    (`mrt_plugin.layout.tree.Tree`). Windows of sliding layers and chunks of chunked layers are measured on positions,
    as if each pair were alone, never on row indices. Padding sees itself, so that no softmax is empty.
    Returns FlexAttention's `mask_mod`: from indices of row, head, query and key, True where the query sees the key.
    """
    ends, position = rows.ends, rows.position_ids

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        here, there = position[batch, query], position[batch, key]
        mask = (key <= query) & (query < ends[batch, key]) | (key == query)
        if window is not None:
            mask = mask & (here - there < window)
        if chunk is not None:
            mask = mask & (here // chunk == there // chunk)
        return mask

    return seen


def visible(rows: Rows, **limits: int | None) -> Tensor:
    """Return the rule as a dense mask, [R, 1, T, T] bool, queries before keys."""
    batch, index = (torch.arange(size, device=rows.ends.device) for size in rows.ends.shape)
    return visibility(rows, **limits)(batch[:, None, None, None], None, index[:, None], index)


def block_mask(rows: Rows, **limits: int | None) -> BlockMask:
    (count, width), device = rows.ends.shape, rows.ends.device
    # Compiled code never holds the full mask. On CPU the mask only serves comparisons, so compiling is not worth it.
    create = create_block_mask if device.type == "cpu" else torch.compile(create_block_mask)
    mask: BlockMask = create(visibility(rows, **limits), count, None, width, width, device=device)
    return mask


class DenseBackend(OneForward):
    """Run rows through transformers' `sdpa` or `eager` attention with a T x T mask per row of T tokens.

    Exact for every family whose layers are all attention, including attention dropout. Use it as a reference.
    """

    name = "dense"

    def prepare_model(self, model: Any) -> None:
        """Keep the model's attention if it is `eager`, or `sdpa` where that is exact; otherwise set one of them."""
        self.attention = "eager" if text_attention(model) == "eager" else exact_attention(model)
        super().prepare_model(model)

    def arguments(self, model: Any, rows: Rows) -> dict[str, Any]:
        dtype = model.dtype if text_attention(model) == "eager" else None
        return _by_kind({kind: self._mask(kind, rows, dtype) for kind in self.family.kinds})

    def _mask(self, kind: str, rows: Rows, dtype: torch.dtype | None) -> Tensor:
        """Return a bool mask for sdpa. For eager, which adds the mask to the scores: 0 or the minimum of `dtype`."""
        seen = visible(rows, **self.family.limits(kind))
        if dtype is None:
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


class FlexBackend(OneForward):
    """Run shared-prefix rows through FlexAttention, for GPUs. Its kernels have no backward pass on CPU.

    Exact for every family whose layers are all attention and that transformers runs with `flex_attention`. This
    includes windows and chunks on positions, sinks and soft-capping.
    """

    name = "flex"
    attention = "flex_attention"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        refuse_dropout(self.family, self.name)

    def prepare_model(self, model: Any) -> None:
        if not model._supports_flex_attn and not model._is_stateful:
            raise NotShareable(
                f"prefix_backend=flex: transformers has no flex_attention for {self.family.model_type}. Use "
                "prefix_backend=sdpa."
            )
        super().prepare_model(model)

    def arguments(self, model: Any, rows: Rows) -> dict[str, Any]:
        return _by_kind({kind: block_mask(rows, **self.family.limits(kind)) for kind in self.family.kinds})

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> Tensor:
        width = rows.input_ids.shape[1]
        fill = {"shift_labels": IGNORE}
        padded = {
            name: torch.nn.functional.pad(value, (0, -width % BLOCK), value=fill.get(name, 0))
            for name, value in rows.to_batch().items()
            if value.dim() == 2
        }
        return super().token_nll(model, Rows(**padded, units=rows.units), compute)[:, :width]


def _by_kind(masks: dict[str, Any]) -> dict[str, Any]:
    """Return the mask itself for a family with one kind of layer. The others expect a dict with one per kind."""
    return {"attention_mask": masks if len(masks) > 1 else next(iter(masks.values()))}
