"""The visibility rule that every shared-prefix backend implements: which token may attend to which."""

import torch

from mrt_plugin.layout.rows import Rows


def visible(rows: Rows, *, window: int | None = None, chunk: int | None = None) -> torch.Tensor:
    """Build the mask of the rule as a dense tensor.

    A query sees the keys of its own group that belong to the prompt (segment 0) or to its own segment. A key's
    position must not be after the query's. Windows of sliding layers and chunks of chunked layers are measured on
    positions, as if each pair were alone, never on row indices. Padding sees padding, so that no softmax is empty.

    Args:
        rows: R rows of T tokens.
        window: number of positions that a sliding layer sees, including the query's own.
        chunk: positions per chunk of a chunked layer.

    Returns:
        [R, 1, T, T] bool, queries before keys: True where the query sees the key.
    """
    query = (slice(None), None, slice(None), None)
    key = (slice(None), None, None, slice(None))
    group, segment, position = rows.group_ids, rows.segment_ids, rows.position_ids
    seen = group[query] == group[key]
    seen &= (segment[key] == 0) | (segment[query] == segment[key])
    seen &= position[key] <= position[query]
    if window is not None:
        seen &= position[query] - position[key] < window
    if chunk is not None:
        seen &= torch.div(position[query], chunk, rounding_mode="floor") == torch.div(
            position[key], chunk, rounding_mode="floor"
        )
    return seen
