"""The reference backend: one dense 4-D mask per kind of layer, passed to the model's own attention."""

from typing import Any

import torch

from mrt_plugin.attention.backend import Compute
from mrt_plugin.attention.family import CHUNKED, FULL, SLIDING, Family, NotShareable, read_family, refuse_state
from mrt_plugin.attention.implementation import exact_attention, quiet_router, set_text_attention, text_attention
from mrt_plugin.attention.rule import visible
from mrt_plugin.layout.rows import Rows


class DenseBackend:
    """Run shared-prefix rows through transformers' `sdpa` or `eager` attention with a T x T mask per row.

    Exact for every family whose layers are all attention, including attention dropout. Time and memory grow with the
    square of the row length T. Use it as a reference, or for short rows.

    Example:

    ```python
    backend = DenseBackend(model.config)
    backend.prepare_model(model)
    nll = backend.token_nll(model, rows, compute)  # [R, T]
    ```
    """

    name = "dense"

    def __init__(self, config: Any) -> None:
        self.family: Family = read_family(config)
        self._before: str | None = None
        if self.family.stateful:
            raise NotShareable(
                f"prefix_backend=dense: {self.family.model_type} has layers ({', '.join(self.family.stateful)}) that "
                "carry a state along the row, which no mask can separate. Use prefix_backend=fork or layout=expanded."
            )

    def prepare_model(self, model: Any) -> None:
        """Keep the model's attention if it is `eager`, or `sdpa` where that is exact; otherwise set one of them."""
        refuse_state(model, self.name)
        before = text_attention(model)
        if before not in ("eager", exact_attention(model)):
            self._before = before
            set_text_attention(model, exact_attention(model))

    def restore_model(self, model: Any) -> None:
        """Restore the model's previous attention."""
        if self._before is not None:
            set_text_attention(model, self._before)
            self._before = None

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> torch.Tensor:
        """Compute the NLL of all rows in one forward."""
        dtype = model.dtype if text_attention(model) == "eager" else None
        masks = {kind: self._mask(kind, rows, dtype) for kind in self.family.kinds}
        kwargs = {
            "input_ids": rows.input_ids,
            "position_ids": rows.position_ids,
            # A family with one kind of layer expects the mask itself, the others expect a dict with one per kind.
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            "use_cache": False,
            **quiet_router(model),
        }
        return compute(kwargs, rows.labels)

    def _mask(self, kind: str, rows: Rows, dtype: torch.dtype | None) -> torch.Tensor:
        """Return a bool mask for sdpa. For eager, which adds the mask to the scores: 0 or the minimum of `dtype`."""
        assert kind in (FULL, SLIDING, CHUNKED)
        seen = visible(
            rows,
            window=self.family.window if kind == SLIDING else None,
            chunk=self.family.chunk if kind == CHUNKED else None,
        )
        if dtype is None:
            return seen
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
