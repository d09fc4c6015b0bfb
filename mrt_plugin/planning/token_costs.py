"""What a prompt and a response cost in tokens, from a tokenizer alone."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.layout.group_row import build_group_row
from mrt_plugin.options import PaidLayout
from mrt_plugin.planning.budget import Costs


def token_costs(groups: Iterable[Mapping[str, Any]], encoder: Encoder, layout: PaidLayout) -> Costs:
    """C_p and C_r as the layout would lay them out: the mean length of the shared prefix, and of a response's segment.

    Means over prompts. What attention adds with the square of a length is left out.

    Args:
        groups: rows with `prompt` and `responses`; at least one.
        encoder: with the tokenizer that is trained with.
        layout: the one that is paid for.

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
