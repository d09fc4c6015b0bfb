"""Plan a third level: how many documents, prompts per document and responses per prompt a budget should buy.

A document is computed once for those of its prompts that are in one micro-batch (`group_by_prefix`). n documents with
m prompts of K responses each cost n·(C_d + m·(C_p + K·C_r)), and the variance of their mean loss is that of
`mrt_plugin.planning.nested`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from mrt_plugin.groups.keys import canonical
from mrt_plugin.layout.beginnings import BLOCK, shared_paths
from mrt_plugin.options import LossAggregation
from mrt_plugin.planning.nested import (
    NestedComponents,
    NestedIntervals,
    document_table,
    estimate_nested,
    estimate_tables,
    nested_intervals,
)
from mrt_plugin.planning.progress import Progress, counting
from mrt_plugin.planning.variance import Interval, Losses

if TYPE_CHECKING:
    from mrt_plugin.encoding import Encoder
    from mrt_plugin.encoding.pair import Pair

EVERYBODY = 0.5
"""A beginning that a larger share of the prompts has is a system text, not a document."""

VALUES = 64
"""Most values of m that are priced."""


@dataclass(frozen=True)
class DocumentCosts:
    """Cost C_d of a document, C_p of a prompt without its document, and C_r of a response, in any unit."""

    document: float
    prompt: float
    response: float

    def of_document(self, m: float, k: float) -> float:
        return self.document + m * (self.prompt + k * self.response)


@dataclass(frozen=True)
class DocumentRow:
    """What a budget buys with m prompts per document and K responses per prompt, and Var[L] of the loss estimate."""

    m: int
    k: int
    documents: int
    prompts: float
    cost: float
    variance: float


@dataclass(frozen=True, kw_only=True)
class DocumentPlan:
    """The third level of a plan. `components` are those of `documents_measured` documents."""

    documents: int
    """Documents with at least 2 prompts in the data; prompts beyond theirs are not in this part of the plan."""
    prompts: int
    most_prompts: int
    components: NestedComponents
    intervals: NestedIntervals | None
    costs: DocumentCosts
    m_star: float
    k_star: float
    best: DocumentRow
    m_interval: Interval | None
    k_interval: Interval | None
    choices: list[DocumentRow]
    """For each m the row with the best K."""
    saves: float
    """Share by which the best row's variance is below that of one prompt per document at the same cost."""

    def correlation(self, k: int) -> float:
        """Return the correlation of the mean losses of two prompts of one document, with k responses each."""
        part = self.components
        v_d = max(part.v_d, 0.0)
        total = v_d + max(part.v_p, 0.0) + part.v_r / k
        return v_d / total if total else 0.0


def find_documents(
    groups: Dataset, encoder: "Encoder", progress: Progress = lambda stage, done, total: None
) -> np.ndarray:
    """Return the document of each group as a number, [n]; -1 if it has none.

    The document is the longest beginning of whole blocks of 64 tokens that a prompt shares with another, unless more
    than half of all prompts have it.
    """
    starts = [canonical(prompt)[:BLOCK] for prompt in groups["prompt"]]
    counts = Counter(starts)
    # Texts that do not begin alike are not encoded: their tokens do not either.
    rows = [row for row, start in enumerate(starts) if counts[start] > 1]
    step = counting(progress, "documents", len(rows)) if rows else None
    beginnings = []
    for group in groups.select(rows).select_columns(["prompt", "responses"]):
        (pair,) = encoder.encode_group(group["prompt"], group["responses"][:1])
        beginnings.append(beginning_of(pair))
        assert step is not None
        step(1)
    paths = shared_paths(beginnings)
    members = Counter(int(node) for path in paths for node in path)
    found = np.full(len(groups), -1, dtype=np.int64)
    for row, path in zip(rows, paths, strict=True):
        own = [int(node) for node in path if members[int(node)] <= EVERYBODY * len(groups)]
        if own:
            found[row] = own[-1]
    return found


def beginning_of(pair: "Pair") -> np.ndarray:
    """Return the tokens before the first trained one."""
    trained = np.asarray(pair.trained)
    return np.asarray(pair.input_ids)[: int(trained.argmax()) if trained.any() else len(trained)]


def common_length(sequences: Sequence[np.ndarray]) -> int:
    """Return the number of tokens with which all sequences begin."""
    shortest = min(map(len, sequences))
    equal = np.array([tokens[:shortest] == sequences[0][:shortest] for tokens in sequences]).all(axis=0)
    return shortest if equal.all() else int(equal.argmin())


def document_variances(
    costs: DocumentCosts,
    *,
    document_sizes: Sequence[int],
    pool_sizes: Sequence[int],
    budget: float,
    loss_aggregation: LossAggregation,
) -> tuple[list[tuple[int, int, int, float, float]], np.ndarray]:
    """Return (m, K, documents, prompts, cost) of each choice, and its factors of V_d, V_p and V_r, [choices, 3].

    A document keeps c = min(m, its prompts) prompts, a prompt k = min(K, its pool) responses; pool sizes are taken to
    be independent of the document. A document's weight in the loss is the sum of its prompts' votes: k each, or one
    with `loss_aggregation: prompt`. With equal sizes the factors are 1/n, 1/(n·m) and 1/(n·m·K).
    """
    sizes, pools = np.asarray(document_sizes), np.asarray(pool_sizes)
    most = int(sizes.max())
    values = range(1, most + 1)
    if most > VALUES:
        values = np.unique(np.geomspace(1, most, VALUES).round().astype(int)).tolist()  # type: ignore[assignment]
    choices, factors = [], []
    for k in range(1, int(pools.max()) + 1):
        kept = np.minimum(pools, k)
        mean_k = float(kept.mean())
        votes = np.ones(len(kept)) if loss_aggregation == "prompt" else kept
        vote, square = float(votes.mean()), float((votes**2).mean())
        noise = float((votes**2 / kept).mean())
        for m in values:
            asked = np.minimum(sizes, m)
            mean_m, square_m = float(asked.mean()), float((asked**2).mean())
            cost = costs.of_document(mean_m, mean_k)
            count = min(len(sizes), int(budget / cost * (1 + 1e-12)))
            choices.append((m, k, count, count * mean_m, count * cost))
            total = (mean_m * vote) ** 2
            # E[(sum of c independent votes)²] = c·Var[vote] + c²·E[vote]²
            of_document = mean_m * (square - vote**2) + square_m * vote**2
            factors.append(np.array([of_document, mean_m * square, mean_m * noise]) / total / (count or math.nan))
    return choices, np.nan_to_num(np.array(factors), nan=np.inf)


def price_documents(
    documents: Sequence[Losses],
    costs: DocumentCosts,
    *,
    document_sizes: Sequence[int],
    pool_sizes: Sequence[int],
    budget: float,
    loss_aggregation: LossAggregation,
    level: float,
    draws: int = 1000,
    seed: int = 0,
) -> DocumentPlan:
    """Find the m and K of least variance within a budget, from the losses of each document's prompts' responses.

    `document_sizes` are the prompts of each document owned, and `pool_sizes` the responses of each of these prompts.
    Components below 0 count as 0.
    The intervals of m and K are percentiles over bootstrap draws of the documents.
    """
    if budget < costs.of_document(1, 1):
        raise ValueError(
            f"A budget of {budget:g} does not pay for one document with one prompt and one response, which costs "
            f"{costs.of_document(1, 1):g}: raise it."
        )
    components = estimate_nested(documents)
    intervals = nested_intervals(documents, level=level, draws=draws, seed=seed)
    sizes: dict[str, Any] = {"document_sizes": document_sizes, "pool_sizes": pool_sizes}
    choices, factors = document_variances(costs, **sizes, budget=budget, loss_aggregation=loss_aggregation)
    # Of equal variances, the choice with fewer responses and then fewer prompts comes first.
    parts = np.maximum([components.v_d, components.v_p, components.v_r], 0.0)
    with np.errstate(invalid="ignore"):
        variances = np.nan_to_num(factors @ parts, nan=np.inf)
    rows = [DocumentRow(*choice, float(variance)) for choice, variance in zip(choices, variances, strict=True)]
    best_of = {m: min((row for row in rows if row.m == m), key=lambda row: row.variance) for m, *_ in choices}
    best = min(best_of.values(), key=lambda row: row.variance)
    ends: list[Interval | None] = [None, None]
    if intervals is not None:
        table = document_table(documents)
        chosen = np.random.default_rng(seed).integers(len(table), size=(draws, len(table)))
        drawn = np.maximum([value for value, _ in estimate_tables(table[chosen])], 0.0)
        with np.errstate(invalid="ignore"):
            winners = np.nan_to_num(factors @ drawn, nan=np.inf).argmin(axis=0)
        for place in (0, 1):
            values = np.array([choices[winner][place] for winner in winners])
            low = float(np.quantile(values, (1 - level) / 2, method="lower"))
            ends[place] = Interval(low, float(np.quantile(values, (1 + level) / 2, method="higher")))
    return DocumentPlan(
        documents=len(document_sizes),
        prompts=int(sum(document_sizes)),
        most_prompts=max(document_sizes),
        components=components,
        intervals=intervals,
        costs=costs,
        m_star=_root(costs.document * components.v_p, costs.prompt * components.v_d),
        k_star=_root(costs.prompt * components.v_r, costs.response * components.v_p),
        best=best,
        m_interval=ends[0],
        k_interval=ends[1],
        choices=list(best_of.values()),
        saves=1 - best.variance / best_of[1].variance if best_of[1].variance else 0.0,
    )


def _root(above: float, below: float) -> float:
    """Return the square root of a ratio of positive figures; ∞ if only the lower one is not positive."""
    return math.sqrt(max(above, 0.0) / below) if below > 0 else math.inf


def rows_of_documents(labels: Iterable[int]) -> list[list[int]]:
    """Return the rows of each document with at least 2 prompts, in order of their first row."""
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        if label >= 0:
            rows.setdefault(int(label), []).append(row)
    return [members for members in rows.values() if len(members) > 1]
