"""Weights of a group's responses from their scores."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, Features, List, Value


def softmax_weights(scores: Sequence[float], temperature: float) -> list[float]:
    """w_j = K · exp(score_j / T) / sum_i exp(score_i / T): K weights whose mean is 1.

    A mean of 1 leaves the size of the loss alone, and a group's share of it the same as without weights. Towards T = 0
    only the best response trains; towards infinity all count alike.

    Args:
        scores: of the K responses that are trained.
        temperature: T > 0, in the unit of the scores.

    Raises:
        ValueError: for a temperature that is not above 0.

    Example:

    >>> [round(weight, 3) for weight in softmax_weights([0.0, 1.0], temperature=1.0)]
    [0.538, 1.462]
    """
    if not temperature > 0:
        raise ValueError(f"weight_temperature={temperature!r} must be above 0.")
    if not len(scores):
        return []
    given = np.asarray(scores, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):
        powers = np.exp((given - given.max()) / temperature)
    weights: list[float] = (powers * (len(given) / powers.sum())).tolist()
    return weights


def weigh_groups(groups: Dataset, temperature: float) -> Dataset:
    """The groups with a column `weights` from their scores, in place of any they had.

    Raises:
        ValueError: if there are no scores.
    """
    if "scores" not in groups.column_names:
        raise ValueError("weights='softmax' needs scores: give a column `scores`, or a `scorer`.")
    features = Features({**groups.features, "weights": List(Value("float64"))})
    return groups.map(
        lambda group: {"weights": softmax_weights(group["scores"], temperature)}, features=features, desc="Weighing"
    )
