"""The interface of an attention backend, and the plain forward of the expanded layout."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mrt_plugin.attention.family import (
    NotShareable,
    exact_attention,
    read_family,
    set_text_attention,
    text_attention,
)
from mrt_plugin.layout.group_row import IGNORE
from mrt_plugin.layout.rows import Rows

logger = logging.getLogger(__name__)

Compute = Callable[[dict[str, Any], Tensor], Tensor]
"""`compute(forward_kwargs, shift_labels)` runs `model(**forward_kwargs)` once, without labels, and returns the [B, T]
negative log-likelihood of `shift_labels` [B, T]. `shift_labels[:, t]` is predicted from position t. The result is 0
where the label is -100.
"""


class Backend(Protocol):
    """An exact method to run rows through a model. A shared-prefix backend is built from the model's configuration."""

    name: str

    def prepare_model(self, model: Any) -> None:
        """Set up the model (or the model inside a PeftModel) for this backend. Repeated calls are allowed."""

    def restore_model(self, model: Any) -> None:
        """Undo `prepare_model`."""

    def forwards(self, rows: Rows) -> int:
        """Return how often `token_nll` runs the model."""

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> Tensor:
        """Return the [R, T] negative log-likelihood of every label of `rows`, in nats; 0 where the label is -100."""


class OwnAttention:
    """The base of backends that may replace a model's attention and give it back."""

    _before: str | None = None

    def prepare_model(self, model: Any) -> None:
        """Replace `sdpa` by `eager` for families with soft-capped scores, since `sdpa` would drop the cap."""
        if text_attention(model) == "sdpa" and exact_attention(model) == "eager":
            self._set(model, "eager")
            logger.info("%s: attention set to eager, as sdpa ignores its soft-capping.", model.config.model_type)

    def _set(self, model: Any, attention: str) -> None:
        if text_attention(model) != attention:
            self._before = text_attention(model)
            set_text_attention(model, attention)

    def restore_model(self, model: Any) -> None:
        if self._before is not None:
            set_text_attention(model, self._before)
            self._before = None

    def forwards(self, rows: Rows) -> int:
        return 1


class OneForward(OwnAttention):
    """The base of backends that set the model's attention to `attention` and run all rows in one forward."""

    name: str
    attention: str

    def __init__(self, config: Any) -> None:
        self.family = read_family(config)
        if self.family.stateful:
            raise NotShareable(
                f"prefix_backend={self.name}: {self.family.model_type} has layers ({', '.join(self.family.stateful)}) "
                "that carry a state along the row, which no mask can separate. Use prefix_backend=fork or "
                "layout=expanded."
            )

    def prepare_model(self, model: Any) -> None:
        if model._is_stateful:  # declared by the class, where the configuration lists no such layer
            raise NotShareable(
                f"prefix_backend={self.name}: {model.config.model_type} carries a state along the row, which an "
                "attention mask cannot separate. Use prefix_backend=fork or layout=expanded."
            )
        self._set(model, self.attention)

    def arguments(self, model: Any, rows: Rows) -> dict[str, Any]:
        """Return the arguments of the model's forward that make it compute shared-prefix rows."""
        raise NotImplementedError

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> Tensor:
        kwargs = {"input_ids": rows.input_ids, "position_ids": rows.position_ids, "use_cache": False}
        # The load-balancing loss of a mixture of experts accepts a 2-D mask only. Without labels it has no use.
        if getattr(model.config.get_text_config(), "output_router_logits", False):
            kwargs["output_router_logits"] = False
        return compute({**kwargs, **self.arguments(model, rows)}, rows.shift_labels)


class ExpandedBackend(OwnAttention):
    """Run rows of one pair each, with the usual attention mask. Exact for every family.

    Rows that hold several pairs need a shared-prefix backend. Its rule separates pairs as well: each is then a tree of
    one run.
    """

    name = "expanded"

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> Tensor:
        tokens = rows.attention_mask
        if bool((rows.ends != tokens * tokens.sum(1, keepdim=True)).any()):
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
        return compute(kwargs, rows.shift_labels)


class OneByOneBackend(ExpandedBackend):
    """Run rows of one pair each: every pair in its own forward, without padding.

    For models whose plain forward depends on the shape of its batch. Slow; the steps are the same.
    """

    name = "one_by_one"

    def forwards(self, rows: Rows) -> int:
        return len(rows.input_ids)

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> Tensor:
        where = rows.attention_mask.bool()
        found = []
        for row in range(len(where)):
            tokens = {name: value[row][where[row]][None] for name, value in rows.to_batch().items() if value.ndim == 2}
            alone = Rows(**tokens, units=rows.units[row : row + 1])
            found.append(super().token_nll(model, alone, compute)[0])
        values = torch.cat(found)
        return values.new_zeros(where.shape).masked_scatter(where, values)


class UnsharedBackend(ExpandedBackend):
    """Run the sequences of shared rows through the plain forward: one per row of a batch, in one forward.

    For rows that were collated before sharing was refused. A token's NLL comes from the first of its sequences.
    """

    name = "unshared"

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> Tensor:
        count, width = rows.ends.shape
        ends, index, device = rows.ends.cpu(), torch.arange(width), rows.ends.device
        paths = [
            row * width + (ends[row, : last + 1] > last).nonzero().flatten()
            for row in range(count)
            for last in (ends[row] == index + 1).nonzero().flatten().tolist()  # no later token sees this one
        ]
        source = torch.nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=-1)
        places = (source >= 0).flatten().nonzero().flatten()
        first = torch.zeros(source.numel(), dtype=torch.bool)
        first[places[np.unique(source.flatten()[places].numpy(), return_index=True)[1]]] = True
        source, first = source.to(device), first.view_as(source).to(device)
        present = source >= 0

        def take(column: Tensor, fill: int, where: Tensor) -> Tensor:
            return torch.where(where, column.flatten()[source.clamp_min(0)], fill)

        lengths = present.sum(1, keepdim=True)
        single = replace(
            rows,
            input_ids=take(rows.input_ids, 0, present),
            position_ids=take(rows.position_ids, 0, present),
            ends=torch.where(present, lengths, 0),
            shift_labels=take(rows.shift_labels, IGNORE, first),
        )
        nll = super().token_nll(model, single, compute)
        return nll.new_zeros(count * width).index_put((source[first],), nll[first]).view(count, width)
