"""The `flex` backend: transformers' FlexAttention with a block mask, which skips blocks that no query sees."""

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from mrt_plugin.attention.backend import Compute
from mrt_plugin.attention.family import CHUNKED, SLIDING, NotShareable, read_family, refuse_dropout, refuse_state
from mrt_plugin.attention.implementation import quiet_router, set_text_attention, text_attention
from mrt_plugin.layout.group_row import IGNORE
from mrt_plugin.layout.rows import PADDING, Rows

BLOCK = 128
"""FlexAttention's block size. Rows are padded to a multiple of it, so that fewer shapes are compiled."""


class FlexBackend:
    """Run shared-prefix rows through FlexAttention, for GPUs. Its kernels have no backward pass on CPU.

    Exact for every family whose layers are all attention and that transformers runs with `flex_attention`. This
    includes windows and chunks on positions, sinks and soft-capping.

    Example:

    ```python
    backend = FlexBackend(model.config)
    backend.prepare_model(model)
    nll = backend.token_nll(model, rows, compute)  # [R, T]
    ```
    """

    name = "flex"

    def __init__(self, config: Any) -> None:
        self.family = read_family(config)
        self._before: str | None = None
        if self.family.stateful:
            raise NotShareable(
                f"prefix_backend=flex: {self.family.model_type} has layers ({', '.join(self.family.stateful)}) that "
                "carry a state along the row, which no mask can separate. Use prefix_backend=fork or layout=expanded."
            )
        refuse_dropout(self.family, self.name)

    def prepare_model(self, model: Any) -> None:
        """Set the text model to `flex_attention`."""
        refuse_state(model, self.name)
        if not model._supports_flex_attn:
            raise NotShareable(
                f"prefix_backend=flex: transformers has no flex_attention for {self.family.model_type}. Use "
                "prefix_backend=sdpa."
            )
        if text_attention(model) != "flex_attention":
            self._before = text_attention(model)
            set_text_attention(model, "flex_attention")

    def restore_model(self, model: Any) -> None:
        """Restore the model's previous attention."""
        if self._before is not None:
            set_text_attention(model, self._before)

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> torch.Tensor:
        """Compute the NLL of all rows in one forward."""
        width = rows.input_ids.shape[1]
        padded = _pad(rows, -width % BLOCK)
        masks = {
            kind: block_mask(
                padded,
                window=self.family.window if kind == SLIDING else None,
                chunk=self.family.chunk if kind == CHUNKED else None,
            )
            for kind in self.family.kinds
        }
        kwargs = {
            "input_ids": padded.input_ids,
            "position_ids": padded.position_ids,
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            "use_cache": False,
            **quiet_router(model),
        }
        return compute(kwargs, padded.labels)[:, :width]


def block_mask(rows: Rows, *, window: int | None = None, chunk: int | None = None) -> BlockMask:
    """Build the rule of `mrt_plugin.attention.rule.visible` as a block mask of the rows."""
    group, segment, position = rows.group_ids, rows.segment_ids, rows.position_ids

    def seen(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        here, there = position[batch, query], position[batch, key]
        mask = group[batch, query] == group[batch, key]
        mask = mask & ((segment[batch, key] == 0) | (segment[batch, query] == segment[batch, key]))
        mask = mask & (there <= here)
        if window is not None:
            mask = mask & (here - there < window)
        if chunk is not None:
            mask = mask & (here // chunk == there // chunk)
        return mask

    count, width = group.shape
    # Compiled code never holds the full mask. On CPU the mask only serves comparisons, so compiling is not worth it.
    compiled = group.device.type != "cpu"
    return create_block_mask(seen, count, None, width, width, device=group.device, _compile=compiled)


def _pad(rows: Rows, missing: int) -> Rows:
    fill = {"group_ids": PADDING, "segment_ids": PADDING, "labels": IGNORE}
    return Rows(
        **{
            name: value if value.dim() == 1 else torch.nn.functional.pad(value, (0, missing), value=fill.get(name, 0))
            for name, value in rows.to_batch().items()
        }
    )
