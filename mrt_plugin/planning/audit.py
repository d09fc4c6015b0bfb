"""Audit how a selection changed the data: lengths, coverage and, with a model, loss and gradient.

Every measure is compared with `random_k` at the same K (responses kept per prompt). The pool is taken as the truth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from datasets import Dataset

from mrt_plugin.groups.keys import canonical, prompt_key
from mrt_plugin.groups.messages import NO_SPACES, response_text
from mrt_plugin.groups.problems import Problems
from mrt_plugin.options import LossAggregation
from mrt_plugin.planning.diversity import words
from mrt_plugin.planning.paired import Bootstrap, Measured
from mrt_plugin.planning.plan import random_of, sample_rows
from mrt_plugin.planning.progress import Progress, counting, quiet
from mrt_plugin.planning.variance import Interval
from mrt_plugin.scoring.cosine import cosine_matrix
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.selection.registry import get_selector
from mrt_plugin.selection.run import select_indices

if TYPE_CHECKING:
    from mrt_plugin.encoding import Encoder
    from mrt_plugin.models.log_likelihood import Model

LEVEL = 0.9


class SelectorCall(NamedTuple):
    """Selector and options of a selection: `alpha`, `similarity` and `embedder`."""

    selector: str
    options: dict[str, Any]


@dataclass(frozen=True)
class AuditCounts:
    """Numbers of pools. The audited ones have some responses kept, but not all."""

    selected: int
    kept_whole: int
    audited: int
    pool: int
    k_least: int
    k_most: int
    pool_median: float


@dataclass(frozen=True)
class LengthAudit:
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
    """Mean loss of the kept responses compared with their pool's. EMSE is the mean squared difference."""

    prompts: int
    kept_minus_pool: float
    kept_minus_pool_interval: Interval | None
    emse: float
    random_k_emse: float
    emse_difference_interval: Interval | None


@dataclass(frozen=True)
class PromptCosine:
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
    difference_interval: Interval | None
    prompts_below_zero: float
    per_prompt: list[PromptCosine]


@dataclass(frozen=True)
class SplitErrors:
    """Errors of one selector over random halves of the pools, and its gradient cosine with the rest of each pool."""

    bias_squared: float
    bias_squared_interval: Interval | None
    variance: float
    emse: float
    cosine: float | None
    cosine_interval: Interval | None


@dataclass(frozen=True)
class SplitAudit:
    prompts: int
    splits: int
    selector: str
    selection: SplitErrors
    random_k: SplitErrors
    cosine_difference_interval: Interval | None


@dataclass(frozen=True)
class Audit:
    """The result of `make_audit`."""

    name: str
    selector: str | None
    groups: AuditCounts
    length: LengthAudit
    coverage: CoverageAudit
    with_model: bool
    pool: str = "POOL"
    """Name of the pool, for the command that is suggested next."""
    loss: LossAudit | None = None
    gradient: GradientAudit | None = None
    splits: SplitAudit | None = None


class Kept(NamedTuple):
    """One selected group: its row in the pool, and the indices of the kept responses there, in rising order."""

    row: int
    places: list[int]


@dataclass(frozen=True)
class AuditedGroup:
    """The N measured responses of a group: `columns` for the selector, and inner products of gradients, [N, N]."""

    id: str
    kept: list[int]
    losses: np.ndarray
    columns: dict[str, list[Any]]
    products: np.ndarray | None = None


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
    pool_name: str = "POOL",
    progress: Progress = lambda stage, done, total: None,
) -> Audit:
    """Audit a selection against the pool it was made from.

    With a model, the loss is audited on `max_prompts` prompts and the gradient on `gradient_prompts` of these. With
    the call that made the selection, the selector is run again on `splits` random halves of each pool.
    """
    strategy = None if rule is None else get_selector(rule.selector)
    matched = match(selection, pool, name)
    sizes = [len(responses) for responses in pool["responses"]]
    chosen = [kept for kept in matched if 0 < len(kept.places) < sizes[kept.row]]
    if not chosen:
        raise ValueError(f"{name} keeps every response of its {len(matched)} pools: there is nothing to audit.")
    ks, median = [len(kept.places) for kept in chosen], float(np.median([sizes[kept.row] for kept in chosen]))
    whole = len(matched) - len(chosen)
    audit = Audit(
        name,
        None if rule is None else rule.selector,
        AuditCounts(len(matched), whole, len(chosen), len(pool), min(ks), max(ks), median),
        *audit_texts(chosen, pool, embedder, progress),
        with_model=model is not None,
        pool=pool_name,
    )
    if model is None:
        return audit

    from mrt_plugin.models.load import keep_trainable
    from mrt_plugin.planning.measure import gradient_products, measure

    assert encoder is not None, "a model needs its encoder"
    if max_prompts is not None and max_prompts < len(chosen):
        names = pool["id"][:]
        drawn = sample_rows([names[kept.row] for kept in chosen], max_prompts, seed, b"audit")
        chosen = sorted((chosen[at] for at in drawn), key=lambda kept: kept.row)
    rows = pool.select([kept.row for kept in chosen])
    if gradient_prompts:
        keep_trainable(model)  # before the losses: they are measured in evaluation mode
    found = measure(model, encoder, rows, max_length=max_length, progress=progress)
    row_of, groups, measured = {name: number for number, name in enumerate(rows["id"])}, [], []
    for one, losses in zip(found.groups, found.losses(loss_aggregation), strict=True):
        row = rows[row_of[one.id]]
        kept = [one.places.index(place) for place in chosen[row_of[one.id]].places if place in one.places]
        if 0 < len(kept) < len(losses):
            columns = {key: [row[key][place] for place in one.places] for key in ("responses", "scores") if key in row}
            columns["responses"] = list(map(response_text, columns["responses"]))
            groups.append(AuditedGroup(one.id, kept, losses, columns))
            measured.append(one)
    if not groups:
        return audit
    gradient = None
    if gradient_prompts:
        responses = [one.responses for one in measured[:gradient_prompts]]
        advance = counting(progress, "gradients", sum(map(len, responses)))
        for number, products in enumerate(gradient_products(model, responses, seed=seed, progress=advance)):
            lengths = measured[number].trained_tokens
            scale = 1 / lengths if loss_aggregation == "response" else np.ones(len(lengths))
            groups[number] = replace(groups[number], products=products * scale[:, None] * scale)
        gradient = audit_gradient(groups[:gradient_prompts], seed)
    again = None
    # A selector that needs scores cannot run again if the pool has none.
    if rule and strategy and not strategy.keeps_all and (not strategy.needs_scores or "scores" in pool.column_names):
        again = audit_splits(groups, rule, splits, seed, progress)
    return replace(audit, loss=audit_loss(groups), gradient=gradient, splits=again)


def match(selection: Dataset, pool: Dataset, name: str = "the selection") -> list[Kept]:
    """Find the selected responses in the pool: groups by id, else by prompt, and responses by text, then score."""
    by_id = {group_id: row for row, group_id in enumerate(pool["id"])}
    by_prompt = {prompt_key(prompt): row for row, prompt in enumerate(pool["prompt"])}
    problems, found = Problems(name), []
    for number, group in enumerate(selection):
        row = by_id.get(group["id"], by_prompt.get(prompt_key(group["prompt"])))
        if row is None:
            problems.add(f"row {number}", "prompt", f"no group of the pool has the id {group['id']!r} or this prompt.")
            continue
        whole, places = pool[row], []
        texts = list(map(canonical, whole["responses"]))
        for index, text in enumerate(map(canonical, group["responses"])):
            copies = [place for place, other in enumerate(texts) if other == text and place not in places]
            if not copies:
                problems.add(
                    f"row {number}",
                    "responses",
                    f"response {index} is not in the pool's group {whole['id']!r}: a selection must be a subset. If "
                    "curation changed it, audit against the curated pool.",
                )
                continue
            if group.get("scores") and whole.get("scores"):
                copies.sort(key=lambda place: abs(whole["scores"][place] - group["scores"][index]))
            places.append(copies[0])
        found.append(Kept(row, sorted(places)))
    problems.raise_any()
    return found


def audit_texts(
    chosen: Sequence[Kept], pool: Dataset, embedder: str, progress: Progress
) -> tuple[LengthAudit, CoverageAudit]:
    """Compare the kept responses with their pools: mean lengths, and how many of a pool's clusters they cover.

    Lengths count words and punctuation signs, or characters in scripts without spaces. N responses are clustered by
    average cosine into sqrt(N) clusters, at least 2.
    """
    from sklearn.cluster import AgglomerativeClustering

    used = load_embedder(embedder)
    unit, lengths, shares = "words", [], []
    for number, (row, places) in enumerate(chosen):
        texts = [response_text(response) for response in pool[row]["responses"]]
        if any(map(NO_SPACES.search, texts)):
            unit = "words or characters"
        counts = np.array([sum(len(word) if NO_SPACES.search(word) else 1 for word in words(text)) for text in texts])
        size, k, clusters = len(texts), len(places), max(2, round(math.sqrt(len(texts))))
        lengths.append((counts[places].mean(), counts.mean(), _random_k_error(counts, k)))
        clustering = AgglomerativeClustering(clusters, metric="precomputed", linkage="average")
        labels = clustering.fit_predict(1 - cosine_matrix(texts, used))
        sizes, hit = np.bincount(labels), np.unique(labels[places])
        expected = np.mean([1 - math.comb(size - int(m), k) / math.comb(size, k) for m in sizes])
        shares.append((len(hit) / clusters, expected, sizes[hit].sum() / size))
        progress("clusters", number + 1, len(chosen))
    mine, mean, error = np.mean(lengths, axis=0).tolist()
    half = 1.645 * math.sqrt(error / len(chosen))
    length = LengthAudit(unit, mine, mean, mine / mean if mean else 1.0, Interval(mean - half, mean + half))
    covered, usual, weight = np.array(shares).T
    gap, share = mean_interval(covered - usual), float(weight.mean())
    return length, CoverageAudit(used.name, float(covered.mean()), float(usual.mean()), gap, share)


def _random_k_error(values: np.ndarray, k: int) -> float:
    """Return the variance of the mean of K of N values drawn without replacement, s²/K·(1 - K/N)."""
    return float(values.var(ddof=1) / k * (1 - k / len(values)))


def audit_loss(groups: Sequence[AuditedGroup]) -> LossAudit:
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


def audit_gradient(groups: Sequence[AuditedGroup], seed: int) -> GradientAudit:
    """Compare the gradient cosine of each prompt's kept responses with that of 20 random draws of the same size."""
    from mrt_plugin.planning.measure import cosine

    cosines = np.empty((2, len(groups)))
    for number, group in enumerate(groups):
        assert group.products is not None
        random, everything = random_of(group.id, seed, b"gradient"), range(len(group.losses))
        drawn = [random.choice(len(everything), len(group.kept), replace=False).tolist() for _ in range(20)]
        usual = np.mean([cosine(group.products, places, everything) for places in drawn])
        cosines[:, number] = cosine(group.products, group.kept, everything), usual
    mine, random_k = cosines
    return GradientAudit(
        prompts=len(groups),
        cosine=float(mine.mean()),
        cosine_interval=mean_interval(mine),
        random_k_cosine=float(random_k.mean()),
        difference_interval=mean_interval(mine - random_k),
        prompts_below_zero=float((mine < 0).mean()),
        per_prompt=[PromptCosine(group.id, *pair) for group, pair in zip(groups, cosines.T.tolist(), strict=True)],
    )


def audit_splits(
    groups: Sequence[AuditedGroup], rule: SelectorCall, splits: int, seed: int, progress: Progress
) -> SplitAudit | None:
    """Run the selector again on random halves of the pools; None if every pool has fewer than K + 3 responses.

    bias² is corrected for the noise of a finite number of splits. Gradients are compared with those of the other half.
    """
    able = [group for group in groups if len(group.losses) >= len(group.kept) + 3]
    if not able:
        return None
    embedder = load_embedder(rule.options.get("embedder", "lexical"))
    known: dict[str, np.ndarray] = {}  # the same responses occur in every split

    def embed(texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, embedder(new) if new else [], strict=True))
        return np.stack([known[text] for text in texts])

    runs: list[tuple[np.ndarray, np.ndarray]] = []
    for split in range(splits):
        parts = []
        for group in able:
            count, random = len(group.losses), random_of(group.id, seed, b"split %d" % split)
            half = max((count + 1) // 2, len(group.kept) + 1)
            parts.append(sorted(random.permutation(count)[:half].tolist()))
        own = {**rule.options, "embedder": embed, "seed": split}
        usual = _run(able, parts, "random_k", {"seed": seed * splits + split})
        runs.append((_run(able, parts, rule.selector, own), usual))
        progress("splits", split + 1, splits)
    truth = np.array([group.losses.mean() for group in able])
    traced = np.array([group.products is not None for group in able])
    found, directions = [], []
    for losses, cosines in np.moveaxis(np.array(runs), 0, 2):  # [2, n] of each selector and split
        variance = losses.var(axis=0, ddof=1)
        bias = (losses.mean(axis=0) - truth) ** 2 - variance / splits
        error, emse = float(variance.mean()), float((bias + variance).mean())
        directions.append(cosines.mean(axis=0)[traced])
        cosine = float(directions[-1].mean()) if traced.any() else None
        ends = mean_interval(directions[-1])
        found.append(SplitErrors(float(bias.mean()), mean_interval(bias), error, emse, cosine, ends))
    mine, usual_errors = found
    return SplitAudit(len(able), splits, rule.selector, mine, usual_errors, mean_interval(np.subtract(*directions)))


def _run(
    groups: Sequence[AuditedGroup], parts: Sequence[list[int]], selector: str, options: dict[str, Any]
) -> np.ndarray:
    """Run a selector on a part of each group, and return the mean loss and the gradient cosine of the kept, [2, n]."""
    from mrt_plugin.planning.measure import cosine

    found = np.full((2, len(groups)), np.nan)
    for k in sorted({len(group.kept) for group in groups}):
        pools, which = [], [number for number, group in enumerate(groups) if len(group.kept) == k]
        for number in which:
            columns = {name: [row[at] for at in parts[number]] for name, row in groups[number].columns.items()}
            pools.append({"id": groups[number].id, "prompt": "", **columns})
        with quiet():
            picks = select_indices(Dataset.from_list(pools), selector, k=k, **options)
        for number, pick in zip(which, picks, strict=True):
            group, kept = groups[number], [parts[number][place] for place in pick]
            found[0, number] = group.losses[kept].mean()
            if group.products is not None:
                rest = [place for place in range(len(group.losses)) if place not in parts[number]]
                found[1, number] = cosine(group.products, kept, rest)
    return found


def mean_interval(values: np.ndarray) -> Interval | None:
    """Return a confidence interval of a mean over prompts; None with fewer than 5 prompts."""
    ends = Bootstrap(len(values), level=LEVEL).interval(Measured.mean(values))
    return None if ends is None else Interval(*ends)
