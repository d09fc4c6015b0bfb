"""The plain forward: one pair per row, through the unchanged model."""

import logging
from typing import Any

import torch

from mrt_plugin.attention.backend import Compute
from mrt_plugin.attention.implementation import exact_attention, set_text_attention, text_attention
from mrt_plugin.layout.rows import PADDING, Rows

logger = logging.getLogger(__name__)


class ExpandedBackend:
    """Run rows of one pair each, with the usual attention mask. Exact for every family.

    Rows that hold several pairs need a shared-prefix backend. Its rule separates pairs as well: a pair is then a
    group of one segment without a shared prefix.

    Example:

    ```python
    nll = ExpandedBackend().token_nll(model, rows, compute)  # [R, T]
    ```
    """

    name = "expanded"

    def __init__(self) -> None:
        self._before: str | None = None

    def prepare_model(self, model: Any) -> None:
        """Replace `sdpa` by `eager` for families with soft-capped scores, since `sdpa` would drop the cap."""
        if text_attention(model) == "sdpa" and exact_attention(model) == "eager":
            self._before = "sdpa"
            set_text_attention(model, "eager")
            logger.info("%s: attention set to eager, as sdpa ignores its soft-capping.", model.config.model_type)

    def restore_model(self, model: Any) -> None:
        """Restore the model's previous attention."""
        if self._before is not None:
            set_text_attention(model, self._before)
            self._before = None

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> torch.Tensor:
        """Compute the NLL of all rows in one forward.

        Raises:
            ValueError: if a row holds more than one pair.
        """
        if bool((rows.group_ids > 0).any() | (rows.segment_ids == 0).any() | (rows.segment_ids > 1).any()):
            raise ValueError(
                "The plain forward needs one pair per row: collate with layout='expanded' and packing=False, or use a "
                "shared-prefix backend."
            )
        kwargs = {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask,
            "position_ids": rows.position_ids,
            "use_cache": False,
        }
        return compute(kwargs, rows.labels)


class OneByOneBackend(ExpandedBackend):
    """Run rows of one pair each: every pair in its own forward, without padding.

    For models whose plain forward depends on the shape of its batch. Slow; the optimizer steps are the same as with
    any other backend.

    Example:

    ```python
    nll = OneByOneBackend().token_nll(model, rows, compute)  # [R, T]
    ```
    """

    name = "one_by_one"

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> torch.Tensor:
        """Compute the NLL in one forward per row."""
        where = rows.group_ids != PADDING
        found = []
        for row in range(len(where)):
            tokens = {name: value[row][where[row]][None] for name, value in rows.to_batch().items() if value.ndim == 2}
            alone = Rows(**tokens, units=rows.units[row : row + 1])
            found.append(super().token_nll(model, alone, compute)[0])
        values = torch.cat(found)
        return values.new_zeros(where.shape).masked_scatter(where, values)
