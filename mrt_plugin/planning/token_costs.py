"""Compute the cost of a prompt and of a response in tokens, from a tokenizer alone."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.layout.group_row import build_group_row
from mrt_plugin.options import PaidLayout
from mrt_plugin.planning.budget import Costs


def token_costs(groups: Iterable[Mapping[str, Any]], encoder: Encoder, layout: PaidLayout) -> Costs:
    """Compute the costs C_p of a prompt and C_r of a response for a layout.

    C_p is the mean length of the shared prefix. C_r is the mean length of a response's segment, averaged over prompts.
    The quadratic cost of attention is left out.

    Args:
        groups: rows with `prompt` and `responses`; at least one.
        encoder: encoder with the tokenizer used in training.
        layout: the layout that determines the cost of a group.

    Example:

    ```python
    token_costs(load_groups("pool.jsonl"), Encoder(tokenizer), "shared_prefix")
    ```
    """
    rows = [build_group_row(encoder.encode_group(group["prompt"], group["responses"])) for group in groups]
    return Costs(
        prompt=float(np.mean([row["prefix_length"] for row in rows])),
        response=float(np.mean([np.mean(row["segment_lengths"]) for row in rows])),
        layout=layout,
    )
