"""Audit how a selection changed the data: lengths, coverage and, with a model, loss and gradient.

Every measure is compared with `random_k` at the same K (responses kept per prompt). The pool is taken as the truth:
the selection is biased if a response is more or less likely among the kept ones than in the pool.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import response_text
from mrt_plugin.groups.text import NO_SPACES
from mrt_plugin.options import LossAggregation
from mrt_plugin.planning.diversity import words
from mrt_plugin.planning.paired import Bootstrap, Measured
from mrt_plugin.planning.plan import random_of
from mrt_plugin.planning.progress import Progress, counting, quiet
from mrt_plugin.planning.subset import Kept, match
from mrt_plugin.planning.variance import Interval
from mrt_plugin.scoring.cosine import cosine_matrix
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.selection.registry import get_selector
from mrt_plugin.selection.run import select_indices

if TYPE_CHECKING:
    from mrt_plugin.encoding import Encoder
    from mrt_plugin.models.log_likelihood import Model
    from mrt_plugin.planning.measure import Measurement

LEVEL = 0.9


@dataclass(frozen=True)
class SelectorCall:
    """Selector and options of a selection, so that it can be repeated on a part of each pool."""

    selector: str
    options: dict[str, Any]
    """`alpha`, `similarity`, `seed` and `embedder`, as for `mrt_plugin.select`."""


@dataclass(frozen=True)
class AuditCounts:
    """Numbers of pools. `audited` counts the pools with some responses kept, but not all."""

    selected: int
    kept_whole: int
    audited: int
    pool: int
    k_least: int
    k_most: int
    pool_median: float


@dataclass(frozen=True)
class LengthAudit:
    """Mean length of the kept responses and of their pools."""

    unit: str
    kept: float
    pool: float
    ratio: float
    random_k_interval: Interval


@dataclass(frozen=True)
class CoverageAudit:
    """Share of each pool's clusters that contain a kept response, and the exact expectation of `random_k`."""

    embedder: str
    clusters_covered: float
    random_k: float
    difference_interval: Interval | None
    responses_in_covered_clusters: float


@dataclass(frozen=True)
class LossAudit:
    """Mean loss of the kept responses compared with their pool's.

    `emse` is the mean squared difference. For `random_k` its expectation is s²/K·(1 - K/N), with s² the variance in
    the pool of N. A larger value means that the selection adds bias.
    """

    prompts: int
    kept_minus_pool: float
    kept_minus_pool_interval: Interval | None
    emse: float
    random_k_emse: float
    emse_difference_interval: Interval | None


@dataclass(frozen=True)
class PromptCosine:
    """Gradient cosine of one prompt."""

    id: str
    cosine: float
    random_k: float


@dataclass(frozen=True)
class GradientAudit:
    """Cosine between the mean gradients of the kept responses and of their pool."""

    prompts: int
    cosine: float
    cosine_interval: Interval | None
    random_k_cosine: float
    """The same for random draws of the same size."""
    difference_interval: Interval | None
    prompts_below_zero: float
    """Share of the prompts with a negative cosine."""
    per_prompt: list[PromptCosine]


@dataclass(frozen=True)
class SplitErrors:
    """Errors of one selector over random halves of the pools."""

    bias_squared: float
    bias_squared_interval: Interval | None
    variance: float
    emse: float
    cosine: float | None
    """Gradient cosine with the rest of the pool; None without gradients."""
    cosine_interval: Interval | None


@dataclass(frozen=True)
class SplitAudit:
    """The selector and `random_k` on the same halves of the pools."""

    prompts: int
    splits: int
    selector: str
    selection: SplitErrors
    random_k: SplitErrors
    cosine_difference_interval: Interval | None


@dataclass(frozen=True)
class Audit:
    """The result of `make_audit`. `mrt_plugin.planning.audit_report` turns it into sentences, tables and a page."""

    name: str
    selector: str | None
    groups: AuditCounts
    length: LengthAudit
    coverage: CoverageAudit
    with_model: bool
    loss: LossAudit | None = None
    """None if not measured, like the next two."""
    gradient: GradientAudit | None = None
    splits: SplitAudit | None = None


def make_audit(
    selection: Dataset,
    pool: Dataset,
    *,
    rule: SelectorCall | None = None,
    model: "Model | None" = None,
    encoder: "Encoder | None" = None,
    loss_aggregation: LossAggregation = "token",
    embedder: str = "lexical",
    max_length: int | None = None,
    max_prompts: int | None = 200,
    gradient_prompts: int = 50,
    splits: int = 20,
    seed: int = 0,
    name: str = "the selection",
    progress: Progress = lambda stage, done, total: None,
) -> Audit:
    """Audit a selection against the pool it was made from.

    With a model and its encoder, the loss is audited on `max_prompts` prompts, drawn by a hash of (seed, id), and the
    gradient on `gradient_prompts` of these. With the call that made the selection (`mrt select` writes it to the
    manifest), the selector is run again on `splits` random halves of each pool. This separates bias from variance.

    Raises:
        DataError: if the selection is not a subset of the pool.
        ValueError: if the selection keeps every response, so that there is nothing to audit, or if the selector is
            unknown.
    """
    strategy = None if rule is None else get_selector(rule.selector)
    matched = match(selection, pool, name)
    sizes = [len(responses) for responses in pool["responses"]]
    chosen = [kept for kept in matched if 0 < len(kept.places) < sizes[kept.row]]
    if not chosen:
        raise ValueError(f"{name} keeps every response of its {len(matched)} pools: there is nothing to audit.")
    counts = [len(kept.places) for kept in chosen]
    audit = Audit(
        name=name,
        selector=None if rule is None else rule.selector,
        groups=AuditCounts(
            selected=len(matched),
            kept_whole=len(matched) - len(chosen),
            audited=len(chosen),
            pool=len(pool),
            k_least=min(counts),
            k_most=max(counts),
            pool_median=float(np.median([sizes[kept.row] for kept in chosen])),
        ),
        length=audit_length(chosen, pool),
        coverage=audit_coverage(chosen, pool, embedder, progress),
        with_model=model is not None,
    )
    if model is None:
        return audit

    from mrt_plugin.planning.measure import measure

    assert encoder is not None, "a model needs its encoder"
    some = _sample(chosen, pool, max_prompts, seed)
    rows = pool.select([kept.row for kept in some])
    found = measure(model, encoder, rows, max_length=max_length, progress=progress)
    groups = _audited(some, rows, found, loss_aggregation)
    if not groups:
        return audit
    gradient = None
    if gradient_prompts:
        few = _with_gradients(groups[:gradient_prompts], model, loss_aggregation, seed, progress)
        groups, gradient = [*few, *groups[gradient_prompts:]], audit_gradient(few, seed)
    again = None
    # A selector that needs scores cannot run again if the pool has none.
    if rule and strategy and not strategy.keeps_all and (not strategy.needs_scores or "scores" in pool.column_names):
        again = audit_splits(groups, rows, rule, splits, seed, progress)
    return replace(audit, loss=audit_loss(groups), gradient=gradient, splits=again)


@dataclass(frozen=True)
class AuditedGroup:
    """One audited group, restricted to the N responses that were measured."""

    row: int
    """Row of the group among the measured pools."""
    id: str
    places: list[int]
    """Indices of the measured responses in the pool's group."""
    kept: list[int]
    """Indices of the kept responses among the measured ones."""
    losses: np.ndarray
    pairs: list[Any]
    lengths: np.ndarray
    products: np.ndarray | None = None
    """Inner products of the gradients, [N, N]."""


def audit_length(chosen: Sequence[Kept], pool: Dataset) -> LengthAudit:
    """Compare the mean length in words of the kept responses with the pool's, and with the 90% range of `random_k`.

    Punctuation signs count as words. In scripts without spaces, characters count.
    """
    kept_means, pool_means, errors = [], [], []
    unit = "words"
    for kept in chosen:
        texts = [response_text(response) for response in pool[kept.row]["responses"]]
        if any(map(NO_SPACES.search, texts)):
            unit = "words or characters"
        lengths = np.array([sum(len(word) if NO_SPACES.search(word) else 1 for word in words(text)) for text in texts])
        kept_means.append(lengths[kept.places].mean())
        pool_means.append(lengths.mean())
        errors.append(_random_k_error(lengths, len(kept.places)))
    mine, mean = float(np.mean(kept_means)), float(np.mean(pool_means))
    half = 1.645 * float(np.sqrt(np.sum(errors)) / len(chosen))
    return LengthAudit(unit, mine, mean, mine / mean if mean else 1.0, Interval(mean - half, mean + half))


def _random_k_error(values: np.ndarray, k: int) -> float:
    """Return the variance of the mean of K of N values that are drawn at random without replacement."""
    return float(values.var(ddof=1) / k * (1 - k / len(values)))


def audit_coverage(chosen: Sequence[Kept], pool: Dataset, embedder: str, progress: Progress) -> CoverageAudit:
    """Compute how many clusters of each pool contain a kept response.

    The N responses of a pool are clustered by average cosine into sqrt(N) clusters, at least 2.
    """
    from sklearn.cluster import AgglomerativeClustering

    used = load_embedder(embedder)
    covered, expected, weight = [], [], []
    for number, kept in enumerate(chosen):
        texts = [response_text(response) for response in pool[kept.row]["responses"]]
        size, count = len(texts), len(kept.places)
        clusters = max(2, round(math.sqrt(size)))
        clustering = AgglomerativeClustering(clusters, metric="precomputed", linkage="average")
        labels = clustering.fit_predict(1 - cosine_matrix(texts, used))
        sizes = np.bincount(labels)
        hit = np.unique(labels[kept.places])
        covered.append(len(hit) / clusters)
        weight.append(sizes[hit].sum() / size)
        expected.append(np.mean([1 - math.comb(size - int(m), count) / math.comb(size, count) for m in sizes]))
        progress("clusters", number + 1, len(chosen))
    return CoverageAudit(
        embedder=used.name,
        clusters_covered=float(np.mean(covered)),
        random_k=float(np.mean(expected)),
        difference_interval=mean_interval(np.array(covered) - np.array(expected)),
        responses_in_covered_clusters=float(np.mean(weight)),
    )


def audit_loss(groups: Sequence[AuditedGroup]) -> LossAudit:
    """Compare the mean loss of the kept responses with their pool's, for each prompt."""
    gaps = np.array([group.losses[group.kept].mean() - group.losses.mean() for group in groups])
    usual = np.array([_random_k_error(group.losses, len(group.kept)) for group in groups])
    return LossAudit(
        prompts=len(groups),
        kept_minus_pool=float(gaps.mean()),
        kept_minus_pool_interval=mean_interval(gaps),
        emse=float((gaps**2).mean()),
        random_k_emse=float(usual.mean()),
        emse_difference_interval=mean_interval(gaps**2 - usual),
    )


def audit_gradient(groups: Sequence[AuditedGroup], seed: int, draws: int = 20) -> GradientAudit:
    """Compute the gradient cosine of each prompt, for the kept responses and for random draws of the same size."""
    from mrt_plugin.planning.gradients import cosine

    mine, usual = [], []
    for group in groups:
        assert group.products is not None
        random = random_of(group.id, seed, b"gradient")
        everything = list(range(len(group.losses)))
        mine.append(cosine(group.products, group.kept, everything))
        drawn = [random.choice(len(everything), len(group.kept), replace=False).tolist() for _ in range(draws)]
        usual.append(float(np.mean([cosine(group.products, places, everything) for places in drawn])))
    return GradientAudit(
        prompts=len(groups),
        cosine=float(np.mean(mine)),
        cosine_interval=mean_interval(np.array(mine)),
        random_k_cosine=float(np.mean(usual)),
        difference_interval=mean_interval(np.array(mine) - np.array(usual)),
        prompts_below_zero=float(np.mean(np.array(mine) < 0)),
        per_prompt=[PromptCosine(group.id, *pair) for group, *pair in zip(groups, mine, usual, strict=True)],
    )


def audit_splits(
    groups: Sequence[AuditedGroup], rows: Dataset, rule: SelectorCall, splits: int, seed: int, progress: Progress
) -> SplitAudit | None:
    """Run the selector again on a random part of each pool, and compare with the rest.

    In each split the candidates are half of the pool, or more if K requires it. The bias is the mean over splits of
    the loss of the K kept, minus the pool's mean loss; the variance is taken over splits. bias² is corrected for the
    noise of a finite number of splits. Gradients are compared with those of the rest, which shares no response with
    the candidates. Returns None if every pool has fewer than K + 3 measured responses.
    """
    from mrt_plugin.planning.gradients import cosine

    able = [group for group in groups if len(group.losses) >= len(group.kept) + 3]
    if not able:
        return None
    embed = _Remember(rule.options.get("embedder", "lexical"))
    estimates: dict[str, list[list[float]]] = {"selection": [], "random_k": []}
    cosines: dict[str, list[list[float]]] = {"selection": [], "random_k": []}
    for split in range(splits):
        parts = [_candidates(group, seed, split) for group in able]
        picks = {
            "selection": _run(able, parts, rows, rule.selector, {**rule.options, "embedder": embed, "seed": split}),
            "random_k": _run(able, parts, rows, "random_k", {"seed": seed * splits + split}),
        }
        for who, chosen in picks.items():
            estimates[who].append([float(group.losses[c].mean()) for group, c in zip(able, chosen, strict=True)])
            cosines[who].append(
                [
                    cosine(group.products, c, [place for place in range(len(group.losses)) if place not in part])
                    for group, part, c in zip(able, parts, chosen, strict=True)
                    if group.products is not None
                ]
            )
        progress("splits", split + 1, splits)
    truth = np.array([group.losses.mean() for group in able])
    directions = {who: np.array(rows).mean(axis=0) for who, rows in cosines.items()}
    known = directions["selection"].size > 0
    found = {}
    for who in estimates:
        table = np.array(estimates[who])
        variance = table.var(axis=0, ddof=1)
        bias = (table.mean(axis=0) - truth) ** 2 - variance / splits
        found[who] = SplitErrors(
            bias_squared=float(bias.mean()),
            bias_squared_interval=mean_interval(bias),
            variance=float(variance.mean()),
            emse=float((bias + variance).mean()),
            cosine=float(np.array(cosines[who]).mean()) if known else None,
            cosine_interval=mean_interval(directions[who]) if known else None,
        )
    gap = mean_interval(directions["selection"] - directions["random_k"]) if known else None
    return SplitAudit(len(able), splits, rule.selector, **found, cosine_difference_interval=gap)


def mean_interval(values: np.ndarray) -> Interval | None:
    """Return a confidence interval of a mean over prompts; None with fewer than 5 prompts."""
    ends = Bootstrap(len(values), level=LEVEL).interval(Measured.mean(values))
    return None if ends is None else Interval(*ends)


class _Remember:
    """Embedder with a cache: the same responses occur in every split, and each text is embedded once."""

    def __init__(self, embedder: str) -> None:
        self.embedder = load_embedder(embedder)
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.embedder(new), strict=True))
        return np.stack([self.known[text] for text in texts])


def _run(
    groups: Sequence[AuditedGroup],
    parts: Sequence[list[int]],
    rows: Dataset,
    selector: str,
    options: dict[str, Any],
) -> list[list[int]]:
    """Run a selector on the candidates of each group, and return the kept indices among the measured responses."""
    chosen: list[list[int]] = [[] for _ in groups]
    for k in sorted({len(group.kept) for group in groups}):
        which = [number for number, group in enumerate(groups) if len(group.kept) == k]
        pools = []
        for number in which:
            pool = rows[groups[number].row]
            places = [groups[number].places[place] for place in parts[number]]
            texts = [response_text(pool["responses"][place]) for place in places]
            scores = {"scores": [pool["scores"][place] for place in places]} if "scores" in pool else {}
            pools.append({"id": pool["id"], "prompt": "", "responses": texts, **scores})
        with quiet():
            picks = select_indices(Dataset.from_list(pools), selector, k=k, **options)
        for number, pick in zip(which, picks, strict=True):
            chosen[number] = [parts[number][place] for place in pick]
    return chosen


def _candidates(group: AuditedGroup, seed: int, split: int) -> list[int]:
    """Draw half of the measured responses, or K + 1 if that is more, by a hash of (seed, split, id)."""
    count = len(group.losses)
    random = random_of(group.id, seed, b"split %d" % split)
    return sorted(random.permutation(count)[: max((count + 1) // 2, len(group.kept) + 1)].tolist())


def _sample(chosen: Sequence[Kept], pool: Dataset, count: int | None, seed: int) -> list[Kept]:
    if count is None or count >= len(chosen):
        return list(chosen)
    names = pool["id"]
    order = sorted(chosen, key=lambda kept: digest(b"audit", str(seed).encode(), names[kept.row].encode()))
    return sorted(order[:count], key=lambda kept: kept.row)


def _audited(
    some: Sequence[Kept], rows: Dataset, found: "Measurement", aggregation: LossAggregation
) -> list[AuditedGroup]:
    """Return the groups that have both kept and left-out responses among the measured ones."""
    kept_of = {rows[number]["id"]: (number, kept) for number, kept in enumerate(some)}
    made = []
    for group, losses in zip(found.groups, found.losses(aggregation), strict=True):
        number, kept = kept_of[group.id]
        places = [group.places.index(place) for place in kept.places if place in group.places]
        if 0 < len(places) < len(losses):
            made.append(
                AuditedGroup(number, group.id, group.places, places, losses, group.pairs, group.trained_tokens)
            )
    return made


def _with_gradients(
    groups: Sequence[AuditedGroup], model: "Model", aggregation: LossAggregation, seed: int, progress: Progress
) -> list[AuditedGroup]:
    from mrt_plugin.planning.gradients import gradient_products

    pairs = [group.pairs for group in groups]
    advance = counting(progress, "gradients", sum(map(len, pairs)))
    products = gradient_products(model, pairs, seed=seed, progress=advance)
    made = []
    for group, table in zip(groups, products, strict=True):
        scale = 1 / group.lengths if aggregation == "response" else np.ones(len(group.lengths))
        made.append(replace(group, products=table * scale[:, None] * scale))
    return made
