"""The `sdpa` backend: causal attention of each run on itself, and attention of segments on their shared prompt."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mrt_plugin.attention.backend import OneForward
from mrt_plugin.attention.family import CHUNKED, SLIDING, NotShareable, refuse_dropout
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

    def of(self, sliding_window: int | None) -> tuple[list[Tensor], int | None]:
        """Return the plan of a layer, and the window that applies to it."""
        if sliding_window is None or self.sliding is None:
            return self.full, None
        return self.sliding, sliding_window

    @staticmethod
    def _plan(rows: Rows, runs: list[Run], window: int | None) -> list[Tensor]:
        plan = [torch.tensor(pieces(runs, window), dtype=torch.int64).reshape(-1, 7)]
        device = rows.input_ids.device
        if device.type == "cuda":
            plan += to_tensors(calls(runs, rows.input_ids.shape[1], device, window))
        return plan


def two_part_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    row_plan: RowPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention, with the signature that `transformers.AttentionInterface` expects.

    With a `row_plan`, the mask is ignored. Without one (a user's own forward, or generation) this is ordinary
    attention with the mask.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if row_plan is None:
        if attention_mask is not None and attention_mask.shape == PLACEHOLDER and query.shape[2] > 1:
            raise NotShareable(
                f"{type(module).__name__} is not handed the arguments of the model's forward, so it cannot know the "
                "layout of a row. Use prefix_backend=dense or layout=expanded."
            )
        if softcap is not None or s_aux is not None:
            return _explicit(query, key, value, attention_mask, scale, dropout, softcap, s_aux), None
        options = {"dropout": dropout, "scaling": scale, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0], None
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
    return shared_attention(query, key, value, plan, scale=scale, window=window, softcap=softcap, sink=s_aux), None


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float,
    softcap: float | None,
    sink: Tensor | None,
) -> Tensor:
    """Compute ordinary attention in fp32, with the soft-capping and sinks that sdpa silently leaves out."""
    copies = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(copies, dim=1).float(), value.repeat_interleave(copies, dim=1)
    scores = query.float() @ key.mT * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        queries, keys = scores.shape[-2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sink is not None:
        scores = torch.cat([scores, sink.float()[:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
    weights = torch.nn.functional.dropout(scores.softmax(-1), dropout)[..., : key.shape[-2]]
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()


AttentionInterface.register(ATTENTION, two_part_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class TwoPartBackend(OneForward):
    """Run shared-prefix rows through fused attention kernels, without a mask and without computing on padding.

    Prompt keys are read once for all segments. Exact for families whose layers are all attention, including sliding
    windows on positions, sinks, soft-capping and grouped keys. Packed `expanded` rows use this backend as well.
    """

    name = "sdpa"
    attention = ATTENTION

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if CHUNKED in self.family.kinds:
            raise NotShareable(
                f"prefix_backend=sdpa: {self.family.model_type} has layers ({CHUNKED}) that it cannot compute. Use "
                "prefix_backend=dense or layout=expanded."
            )
        refuse_dropout(self.family, self.name)

    def arguments(self, model: Any, rows: Rows) -> dict[str, Any]:
        """Return the plan, and a mask that nothing reads."""
        # transformers passes a 4-D mask on unchanged, and this attention ignores it: no T x T mask is built.
        mask = torch.ones(PLACEHOLDER, dtype=torch.bool, device=rows.input_ids.device)
        window = self.family.window if SLIDING in self.family.kinds else None
        return {"attention_mask": mask, "row_plan": RowPlan(rows, window)}
