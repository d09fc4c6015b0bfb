"""Split the variance of a loss estimate into parts from documents, their prompts and the responses to these.

The loss of response r to prompt p of document d is mu + a_d + b_dp + e_dpr, with variances V_d, V_p and V_r. The mean
over n documents with m prompts of K responses each has Var[L] = V_d/n + V_p/(n·m) + V_r/(n·m·K): the nested model of
Searle, Casella and McCulloch, "Variance Components" (1992), chapter 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrt_plugin.planning.paired import FEWEST
from mrt_plugin.planning.variance import Interval, Losses, prompt_table, studentised_intervals


@dataclass(frozen=True)
class NestedComponents:
    """Unbiased estimates of V_d and V_p, which can be below 0, and V_r, in squared units of the loss."""

    v_d: float
    v_p: float
    v_r: float
    documents: int
    """Number of documents with at least 2 prompts that have at least 2 responses. The estimates use only these."""
    prompts: int


@dataclass(frozen=True)
class NestedIntervals:
    v_d: Interval
    v_p: Interval
    v_r: Interval


def estimate_nested(documents: Sequence[Losses]) -> NestedComponents:
    """Estimate V_d, V_p and V_r from the losses of each document's prompts' responses, for any numbers of them.

    Prompt p of document d has K_dp responses with mean y_dp and sample variance s_dp²; document d has m_d prompts with
    the mean y_d of their means and the sample variance S_d² of these. Averages are over a document's prompts first,
    and then over documents, so that each document has one vote:

        V_r = mean of s²
        V_p = mean of (S_d² - mean of s²/K)
        V_d = sample variance of y_d - mean of S_d²/m_d

    Each is unbiased, because s² has the expectation V_r, S_d² has V_p + mean of V_r/K, and the sample variance of y_d
    has V_d + mean of (expectation of S_d²)/m_d.

    Raises:
        ValueError: if fewer than 2 documents have 2 prompts with 2 responses each, or a loss is not finite.

    Example:

    >>> estimate_nested([[[1, 3], [2, 4]], [[5, 5], [9, 7]]]).v_r
    1.5
    """
    table = document_table(documents)
    v_d, v_p, v_r = (float(value[0]) for value, _ in estimate_tables(table[None]))
    return NestedComponents(v_d, v_p, v_r, len(table), int(table[:, 4].sum()))


def nested_intervals(
    documents: Sequence[Losses], *, level: float = 0.9, draws: int = 1000, seed: int = 0
) -> NestedIntervals | None:
    """Compute intervals by a studentised bootstrap over documents; None for fewer than 5 documents."""
    table = document_table(documents)
    if len(table) < FEWEST:
        return None
    v_d, v_p, v_r = studentised_intervals(table, estimate_tables, level=level, draws=draws, seed=seed)
    return NestedIntervals(v_d, v_p, Interval(max(v_r.low, 0.0), v_r.high))


def document_table(documents: Sequence[Losses]) -> np.ndarray:
    """Return [n, 5]: y_d, S_d², mean of s²/K, mean of s² and m_d of each document that the estimates use."""
    used = [[row for row in prompts if len(row) >= 2] for prompts in documents]
    used = [prompts for prompts in used if len(prompts) >= 2]
    if len(used) < 2:
        raise ValueError(
            f"Only {len(used)} documents have 2 prompts with 2 responses or more: what documents add cannot be "
            "measured."
        )
    rows = prompt_table([row for prompts in used for row in prompts])
    tables = np.split(rows, np.cumsum([len(prompts) for prompts in used])[:-1])
    return np.array([[t[:, 0].mean(), t[:, 0].var(ddof=1), t[:, 2].mean(), t[:, 1].mean(), len(t)] for t in tables])


def estimate_tables(table: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return (value, standard error), each [draws], for V_d, V_p and V_r, from document tables [draws, n, 5]."""
    n = table.shape[1]
    means, spread, error, within, prompts = np.moveaxis(table, -1, 0)
    between = (means - means.mean(axis=1, keepdims=True)) ** 2 * n / (n - 1) - spread / prompts
    # Each estimate is a mean over documents, so the spread over documents gives its standard error.
    return tuple(
        (part.mean(axis=1), part.std(axis=1, ddof=1) / np.sqrt(n)) for part in (between, spread - error, within)
    )
