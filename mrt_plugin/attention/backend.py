"""The interface between a trainer and a shared-prefix backend."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from mrt_plugin.layout.rows import Rows

Compute = Callable[[dict[str, Any], torch.Tensor], torch.Tensor]
"""`compute(forward_kwargs, labels)` runs `model(**forward_kwargs)` once, without labels, and returns the [B, T]
negative log-likelihood of `labels` [B, T]. `labels[:, t]` is predicted from position t-1. The result is 0 where the
label is -100, and at t = 0.
"""


class Backend(Protocol):
    """An exact method to run rows through a model."""

    name: str

    def prepare_model(self, model: torch.nn.Module) -> None:
        """Set up the model (or the model inside a PeftModel) for this backend. Repeated calls are allowed."""

    def restore_model(self, model: torch.nn.Module) -> None:
        """Undo `prepare_model`."""

    def token_nll(self, model: torch.nn.Module, rows: Rows, compute: Compute) -> torch.Tensor:
        """Return the [R, T] negative log-likelihood of every label of `rows`, in nats; 0 where the label is -100."""
