"""Choose each objective's learning rate from the runs on the tuning seeds."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np


def tuned(records: Iterable[dict[str, Any]], by: Literal["kl", "reward"]) -> dict[str, float]:
    """Return the best learning rate of each objective: the least mean `kl`, or the largest mean `reward`.

    Example:

    >>> runs = [{"objective": "nll", "learning_rate": rate, "kl": kl} for rate, kl in ((0.1, 2.0), (0.01, 1.0))]
    >>> tuned(runs, by="kl")
    {'nll': 0.01}
    """
    found: dict[str, dict[float, list[float]]] = {}
    for record in records:
        found.setdefault(record["objective"], {}).setdefault(record["learning_rate"], []).append(record[by])
    sign = 1 if by == "kl" else -1
    return {name: min(rates, key=lambda rate: sign * np.mean(rates[rate])) for name, rates in found.items()}
