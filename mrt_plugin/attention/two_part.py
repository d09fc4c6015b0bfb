"""The `sdpa` backend: causal attention of each run on itself, and attention of segments on their shared prompt."""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mrt_plugin.attention.backend import Compute
from mrt_plugin.attention.family import FULL, SLIDING, NotShareable, read_family, refuse_dropout, refuse_state
from mrt_plugin.attention.implementation import quiet_router, set_text_attention, text_attention
from mrt_plugin.attention.plan import Run, find_runs, pieces
from mrt_plugin.attention.shared_attention import shared_attention
from mrt_plugin.attention.varlen import calls, to_tensors
from mrt_plugin.layout.rows import Rows

ATTENTION = "mrt_shared_prefix"
"""The name of this attention among transformers' implementations."""
PLACEHOLDER = (1, 1, 1, 1)
"""The shape of the mask that is passed together with a row plan."""


class RowPlan:
    """The plans of one batch, passed through `model.forward` to every attention layer.

    It is deliberately not a tensor, a tuple or a dict, so that distributed wrappers do not change it. The plans stay
    on the CPU, where their numbers are read without waiting for an accelerator.
    """

    def __init__(self, rows: Rows, window: int | None) -> None:
        runs = find_runs(rows)
        longest = max((run.position + run.length for run in runs), default=0)
        self.window = window
        self.full = self._plan(rows, runs, None)
        self.sliding = None
        """The plan of a sliding layer; None if no position is beyond the window, which then has no effect."""
        if window is not None and longest > window:
            self.sliding = self._plan(rows, runs, window)

    def of(self, sliding_window: int | None) -> tuple[list[torch.Tensor], int | None]:
        """Return the plan of a layer, and the window that applies to it."""
        if sliding_window is None or self.sliding is None:
            return self.full, None
        return self.sliding, sliding_window

    @staticmethod
    def _plan(rows: Rows, runs: list[Run], window: int | None) -> list[torch.Tensor]:
        plan = [torch.tensor(pieces(runs, window), dtype=torch.int64).reshape(-1, 7)]
        device = rows.input_ids.device
        if device.type == "cuda":
            plan += to_tensors(calls(runs, rows.input_ids.shape[1], device, window))
        return plan


def two_part_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    row_plan: RowPlan | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention, with the signature that `transformers.AttentionInterface` expects.

    With a `row_plan`, the mask is ignored. Without one (a user's own forward, or generation) this is ordinary
    attention with the mask.
    """
    if row_plan is None:
        if attention_mask is not None and attention_mask.shape == PLACEHOLDER and query.shape[2] > 1:
            raise NotShareable(
                f"{type(module).__name__} is not handed the arguments of the model's forward, so it cannot know the "
                "layout of a row. Use prefix_backend=dense or layout=expanded."
            )
        return _ordinary(module, query, key, value, attention_mask, scaling, dropout, softcap, s_aux, kwargs)
    if dropout:
        raise NotShareable(
            f"Attention dropout of {dropout} is on, which shared-prefix attention leaves out: set it to 0 in the "
            "model's config, or use layout=expanded."
        )
    if sliding_window is not None and sliding_window != row_plan.window:
        raise NotShareable(f"A layer has a window of {sliding_window}, the config says {row_plan.window}.")
    device = query.device.type
    if torch.is_autocast_enabled(device):  # as autocast does for scaled_dot_product_attention
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    plan, window = row_plan.of(sliding_window)
    out = shared_attention(
        query,
        key,
        value,
        plan,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=window,
        softcap=softcap,
        sink=s_aux,
    )
    return out, None


def _ordinary(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sink: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    if softcap is None and sink is None:
        out, _ = sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
        return out, None
    # sdpa silently leaves out soft-capping and sinks, so attention is computed explicitly here, in fp32.
    copies = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(copies, dim=1).float(), value.repeat_interleave(copies, dim=1)
    scores = query.float() @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        queries, keys = scores.shape[-2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sink is not None:
        scores = torch.cat([scores, sink.float()[:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
    weights = torch.nn.functional.dropout(scores.softmax(-1), dropout)[..., : key.shape[-2]]
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, two_part_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class TwoPartBackend:
    """Run shared-prefix rows through fused attention kernels, without a mask and without computing on padding.

    Prompt keys are read once for all segments. Exact for families whose layers are all attention, including sliding
    windows on positions, sinks, soft-capping and grouped keys. Packed `expanded` rows use this backend as well.

    Example:

    ```python
    backend = TwoPartBackend(model.config)
    backend.prepare_model(model)
    nll = backend.token_nll(model, rows, compute)  # [R, T]
    ```
    """

    name = "sdpa"
    attention = ATTENTION

    def __init__(self, config: Any) -> None:
        self.family = read_family(config)
        self._before: str | None = None
        foreign = [kind for kind in self.family.kinds if kind not in (FULL, SLIDING)]
        if foreign:
            raise NotShareable(
                f"prefix_backend=sdpa: {self.family.model_type} has layers ({', '.join(foreign)}) that it cannot "
                f"compute. Use {'prefix_backend=fork' if self.family.stateful else 'prefix_backend=dense'} or "
                "layout=expanded."
            )
        refuse_dropout(self.family, self.name)

    def prepare_model(self, model: Any) -> None:
        """Set the text model to this attention."""
        refuse_state(model, self.name)
        if text_attention(model) != self.attention:
            self._before = text_attention(model)
            set_text_attention(model, self.attention)

    def restore_model(self, model: Any) -> None:
        """Restore the model's previous attention."""
        if self._before is not None:
            set_text_attention(model, self._before)
            self._before = None

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> torch.Tensor:
        """Compute the NLL of all rows in one forward."""
        window = self.family.window if SLIDING in self.family.kinds else None
        kwargs = {
            "input_ids": rows.input_ids,
            "position_ids": rows.position_ids,
            # transformers passes a 4-D mask on unchanged, and this attention ignores it: no T x T mask is built.
            "attention_mask": torch.ones(PLACEHOLDER, dtype=torch.bool, device=rows.input_ids.device),
            "use_cache": False,
            **quiet_router(model),
            "row_plan": RowPlan(rows, window),
        }
        return compute(kwargs, rows.labels)
