"""Which token may see which: the one rule behind every shared-prefix backend."""

import torch

from mrt_plugin.layout.rows import Rows


def visible(rows: Rows, *, window: int | None = None, chunk: int | None = None) -> torch.Tensor:
    """The dense form of the rule.

    A query sees the keys of its own group that belong to the prompt (segment 0) or to its own segment, at positions
    not after its own. A sliding layer's window and a chunked layer's chunks are taken on positions, as they would be
    were each pair alone, never on indices in the row. Padding sees padding, so that no softmax is empty.

    Args:
        rows: R rows of T tokens.
        window: positions that a sliding layer sees, the query's own included.
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
