"""Compute the weights of a group's responses from their scores."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, List, Value

from mrt_plugin.groups.rows import with_column


def softmax_weights(scores: Sequence[float], temperature: float) -> list[float]:
    """Return K weights with mean 1: w_j = K · exp(score_j / T) / sum_i exp(score_i / T), for a temperature T > 0."""
    if not temperature > 0:
        raise ValueError(f"weight_temperature={temperature!r} must be above 0.")
    if not len(scores):
        return []
    given = np.asarray(scores, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):
        powers = np.exp((given - given.max()) / temperature)
    return list((powers * (len(given) / powers.sum())).tolist())


def weigh_groups(groups: Dataset, temperature: float) -> Dataset:
    """Return the groups with a column `weights` computed from their scores, which replaces an existing one."""
    if "scores" not in groups.column_names:
        raise ValueError("weights='softmax' needs scores: give a column `scores`, or a `scorer`.")
    weights = [softmax_weights(scores, temperature) for scores in groups["scores"]]
    return with_column(groups, "weights", weights, List(Value("float64")))
