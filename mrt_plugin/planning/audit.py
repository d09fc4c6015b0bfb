"""Audit how a selection changed the data: lengths, coverage and, with a model, loss and gradient.

Every measure is compared with `random_k` at the same K (responses kept per prompt). The pool is taken as the truth:
the selection is biased if a response is more or less likely among the kept ones than in the pool.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from datasets import Dataset

from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import response_text
from mrt_plugin.groups.text import NO_SPACES
from mrt_plugin.options import LossAggregation
from mrt_plugin.planning.diversity import words
from mrt_plugin.planning.paired import FEWEST, Bootstrap, Measured
from mrt_plugin.planning.subset import Kept, match
from mrt_plugin.scoring.cosine import cosine_matrix
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.selection.registry import get_selector
from mrt_plugin.selection.run import select_indices

if TYPE_CHECKING:
    from mrt_plugin.encoding import Encoder
    from mrt_plugin.models.log_likelihood import Model
    from mrt_plugin.planning.measure import Measurement

LEVEL = 0.9

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the total number of steps."""


@dataclass(frozen=True)
class Rule:
    """Selector and options of a selection, so that it can be repeated on a part of each pool."""

    selector: str
    options: dict[str, Any]
    """`alpha`, `similarity`, `seed` and `embedder`, as for `mrt_plugin.select`."""


def make_audit(
    selection: Dataset,
    pool: Dataset,
    *,
    rule: Rule | None = None,
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
) -> dict[str, Any]:
    """Audit a selection against the pool it was made from.

    Args:
        selection: groups with some of the responses of the pool's groups.
        pool: groups from `load_groups`.
        rule: how the selection was made (`mrt select` writes it to the manifest). With it, the selector is run again
            on halves of each pool, to separate its bias from its variance.
        model: model for loss and gradient; needs `encoder`.
        encoder: the model's encoder.
        loss_aggregation: aggregation of the training loss.
        embedder: embedder for clusters.
        max_length: maximum tokens of a prompt with one response.
        max_prompts: number of prompts for the loss audit, drawn by a hash of (seed, id); all if None.
        gradient_prompts: number of these prompts for which gradients are computed; 0 for none.
        splits: number of random splits of each pool into halves.
        seed: seed of the draws.
        name: name of the selection in messages.
        progress: progress callback.

    Returns:
        JSON-ready: `groups`, `length`, `coverage`, `loss`, `gradient` and `splits` (None if not measured),
        `warnings` and `notes` (sentences).

    Raises:
        DataError: if the selection is not a subset of the pool.
        ValueError: if the selection keeps every response, so that there is nothing to audit, or if the selector is
            unknown.
    """
    if rule is not None:
        get_selector(rule.selector)
    matched = match(selection, pool, name)
    sizes = [len(responses) for responses in pool["responses"]]
    chosen = [kept for kept in matched if 0 < len(kept.places) < sizes[kept.row]]
    if not chosen:
        raise ValueError(f"{name} keeps every response of its {len(matched)} pools: there is nothing to audit.")
    kept_counts = [len(kept.places) for kept in chosen]
    result: dict[str, Any] = {
        "name": name,
        "selector": None if rule is None else rule.selector,
        "groups": {
            "selected": len(matched),
            "kept_whole": len(matched) - len(chosen),
            "audited": len(chosen),
            "pool": len(pool),
            "k_least": min(kept_counts),
            "k_most": max(kept_counts),
            "pool_median": float(np.median([sizes[kept.row] for kept in chosen])),
        },
        "length": audit_length(chosen, pool),
        "coverage": audit_coverage(chosen, pool, embedder, progress),
        "loss": None,
        "gradient": None,
        "splits": None,
    }
    if model is not None:
        from mrt_plugin.planning.measure import measure

        assert encoder is not None, "a model needs its encoder"
        some = _sample(chosen, pool, max_prompts, seed)
        rows = pool.select([kept.row for kept in some])
        found = measure(
            model,
            encoder,
            rows,
            max_length=max_length,
            progress=lambda done, total: progress("losses of responses", done, total),
        )
        cases = _cases(some, rows, found, loss_aggregation)
        if cases:
            result["loss"] = audit_loss(cases)
            if gradient_prompts:
                _add_gradients(cases[:gradient_prompts], model, loss_aggregation, seed, progress)
                result["gradient"] = audit_gradient(cases[:gradient_prompts], seed)
            if rule is not None and _can_run(rule, pool):
                result["splits"] = audit_splits(cases, rows, rule, splits, seed, progress)
    result["warnings"], result["notes"] = _warnings(result), _notes(result, model is not None)
    return result


@dataclass
class Case:
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


def audit_length(chosen: Sequence[Kept], pool: Dataset) -> dict[str, Any]:
    """Compare the mean length in words of the kept responses with the pool's, and with the 90% range of `random_k`."""
    kept_means, pool_means, errors = [], [], []
    unit = "words"
    for kept in chosen:
        texts = [response_text(response) for response in pool[kept.row]["responses"]]
        if any(map(NO_SPACES.search, texts)):
            unit = "words or characters"
        lengths = np.array([_length(text) for text in texts])
        count, size = len(kept.places), len(lengths)
        kept_means.append(lengths[kept.places].mean())
        pool_means.append(lengths.mean())
        errors.append(lengths.var(ddof=1) / count * (1 - count / size))
    mean, error = float(np.mean(pool_means)), float(np.sqrt(np.sum(errors)) / len(chosen))
    return {
        "unit": unit,
        "kept": float(np.mean(kept_means)),
        "pool": mean,
        "ratio": float(np.mean(kept_means)) / mean if mean else 1.0,
        "random_k_interval": [mean - 1.645 * error, mean + 1.645 * error],
    }


def _length(text: str) -> int:
    """Count words and punctuation signs; in scripts without spaces, count characters."""
    return sum(len(word) if NO_SPACES.search(word) else 1 for word in words(text))


def audit_coverage(chosen: Sequence[Kept], pool: Dataset, embedder: str, progress: Progress) -> dict[str, Any]:
    """Compare the share of each pool's clusters that contain a kept response with the exact expectation of `random_k`.

    The N responses of a pool are clustered by average cosine into sqrt(N) clusters, at least 2.
    """
    from sklearn.cluster import AgglomerativeClustering

    used = load_embedder(embedder)
    covered, expected, weight = [], [], []
    for number, kept in enumerate(chosen):
        texts = [response_text(response) for response in pool[kept.row]["responses"]]
        size, count = len(texts), len(kept.places)
        clusters = max(2, round(math.sqrt(size)))
        labels = AgglomerativeClustering(clusters, metric="precomputed", linkage="average").fit_predict(
            1 - cosine_matrix(texts, used)
        )
        sizes = np.bincount(labels)
        hit = np.unique(labels[kept.places])
        covered.append(len(hit) / clusters)
        weight.append(sizes[hit].sum() / size)
        expected.append(np.mean([1 - math.comb(size - int(m), count) / math.comb(size, count) for m in sizes]))
        progress("clusters", number + 1, len(chosen))
    difference = np.array(covered) - np.array(expected)
    return {
        "embedder": used.name,
        "clusters_covered": float(np.mean(covered)),
        "random_k": float(np.mean(expected)),
        "difference_interval": mean_interval(difference),
        "responses_in_covered_clusters": float(np.mean(weight)),
    }


def audit_loss(cases: Sequence[Case]) -> dict[str, Any]:
    """Compare the mean loss of the kept responses with their pool's, for each prompt.

    `emse` is the mean squared difference. For `random_k` its expectation is s²/K·(1 - K/N), with s² the variance in
    the pool of N. A larger value means that the selection adds bias.
    """
    gaps = np.array([case.losses[case.kept].mean() - case.losses.mean() for case in cases])
    usual = np.array(
        [case.losses.var(ddof=1) / len(case.kept) * (1 - len(case.kept) / len(case.losses)) for case in cases]
    )
    return {
        "prompts": len(cases),
        "kept_minus_pool": float(gaps.mean()),
        "kept_minus_pool_interval": mean_interval(gaps),
        "emse": float((gaps**2).mean()),
        "random_k_emse": float(usual.mean()),
        "emse_difference_interval": mean_interval(gaps**2 - usual),
    }


def audit_gradient(cases: Sequence[Case], seed: int, draws: int = 20) -> dict[str, Any]:
    """Compute the cosine between the mean gradients of the kept responses and of their pool.

    It is compared with that of random draws of the same size.
    """
    from mrt_plugin.planning.gradients import cosine

    mine, usual = [], []
    for case in cases:
        assert case.products is not None
        random = _random(case.id, seed, b"gradient")
        everything = list(range(len(case.losses)))
        mine.append(cosine(case.products, case.kept, everything))
        drawn = [random.choice(len(everything), len(case.kept), replace=False).tolist() for _ in range(draws)]
        usual.append(float(np.mean([cosine(case.products, places, everything) for places in drawn])))
    return {
        "prompts": len(cases),
        "cosine": float(np.mean(mine)),
        "cosine_interval": mean_interval(np.array(mine)),
        "random_k_cosine": float(np.mean(usual)),
        "difference_interval": mean_interval(np.array(mine) - np.array(usual)),
        "prompts_below_zero": float(np.mean(np.array(mine) < 0)),
        "per_prompt": [
            {"id": case.id, "cosine": own, "random_k": other}
            for case, own, other in zip(cases, mine, usual, strict=True)
        ],
    }


def audit_splits(
    cases: Sequence[Case], rows: Dataset, rule: Rule, splits: int, seed: int, progress: Progress
) -> dict[str, Any] | None:
    """Run the selector again on a random part of each pool, and compare with the rest.

    In each split the candidates are half of the pool, or more if K requires it. The bias is the mean over splits of
    the loss of the K kept, minus the pool's mean loss; the variance is taken over splits. bias² is corrected for the
    noise of a finite number of splits. Gradients are compared with those of the rest, which shares no response with
    the candidates.

    Returns:
        JSON-ready results; None if every pool has fewer than K + 3 measured responses.
    """
    from mrt_plugin.planning.gradients import cosine

    able = [case for case in cases if len(case.losses) >= len(case.kept) + 3]
    if not able:
        return None
    embed = _Remember(rule.options.get("embedder", "lexical"))
    estimates: dict[str, list[list[float]]] = {"selection": [], "random_k": []}
    cosines: dict[str, list[list[float]]] = {"selection": [], "random_k": []}
    for split in range(splits):
        parts = [_candidates(case, seed, split) for case in able]
        picks = {
            "selection": _run(able, parts, rows, rule.selector, {**rule.options, "embedder": embed, "seed": split}),
            "random_k": _run(able, parts, rows, "random_k", {"seed": seed * splits + split}),
        }
        for who, chosen in picks.items():
            estimates[who].append([float(case.losses[c].mean()) for case, c in zip(able, chosen, strict=True)])
            cosines[who].append(
                [
                    cosine(case.products, c, [place for place in range(len(case.losses)) if place not in part])
                    for case, part, c in zip(able, parts, chosen, strict=True)
                    if case.products is not None
                ]
            )
        progress("splits", split + 1, splits)
    truth = np.array([case.losses.mean() for case in able])
    result: dict[str, Any] = {"prompts": len(able), "splits": splits, "selector": rule.selector}
    for who in estimates:
        table = np.array(estimates[who])
        variance = table.var(axis=0, ddof=1)
        bias = (table.mean(axis=0) - truth) ** 2 - variance / splits
        directions = np.array(cosines[who])
        result[who] = {
            "bias_squared": float(bias.mean()),
            "bias_squared_interval": mean_interval(bias),
            "variance": float(variance.mean()),
            "emse": float((bias + variance).mean()),
            "cosine": float(directions.mean()) if directions.size else None,
            "cosine_interval": mean_interval(directions.mean(axis=0)) if directions.size else None,
        }
    if np.array(cosines["selection"]).size:
        gap = np.array(cosines["selection"]).mean(axis=0) - np.array(cosines["random_k"]).mean(axis=0)
        result["cosine_difference_interval"] = mean_interval(gap)
    return result


def mean_interval(values: np.ndarray) -> list[float] | None:
    """Return a confidence interval of a mean over prompts; None with fewer than 5 prompts."""
    return Bootstrap(len(values), level=LEVEL).interval(Measured.mean(values))


def _below_zero(interval: list[float] | None) -> bool:
    return interval is not None and interval[1] < 0


def _can_run(rule: Rule, pool: Dataset) -> bool:
    """Return whether the selector can be run again. It cannot if it needs scores that the pool does not have."""
    strategy = get_selector(rule.selector)
    return not strategy.keeps_all and (not strategy.needs_scores or "scores" in pool.column_names)


class _Remember:
    """Embedder with a cache: the same responses occur in every split, and each text is embedded once."""

    def __init__(self, embedder: str) -> None:
        self.embedder, self.known = load_embedder(embedder), {}  # type: ignore[var-annotated]

    def __call__(self, texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.embedder(new), strict=True))
        return np.stack([self.known[text] for text in texts])


def _run(
    cases: Sequence[Case], parts: Sequence[list[int]], rows: Dataset, selector: str, options: dict[str, Any]
) -> list[list[int]]:
    """Run a selector on the candidates of each case, and return the kept indices among the measured responses."""
    chosen: list[list[int]] = [[] for _ in cases]
    for k in sorted({len(case.kept) for case in cases}):
        which = [number for number, case in enumerate(cases) if len(case.kept) == k]
        table: dict[str, list[Any]] = {"id": [], "prompt": [], "responses": []}
        if "scores" in rows.column_names:
            table["scores"] = []
        for number in which:
            group = rows[cases[number].row]
            places = [cases[number].places[place] for place in parts[number]]
            table["id"].append(group["id"])
            table["prompt"].append("")
            table["responses"].append([response_text(group["responses"][place]) for place in places])
            if "scores" in table:
                table["scores"].append([group["scores"][place] for place in places])
        with _no_bars():
            picks = select_indices(Dataset.from_dict(table), selector, k=k, **options)
        for number, pick in zip(which, picks, strict=True):
            chosen[number] = [parts[number][place] for place in pick]
    return chosen


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the progress bars of the selections. The splits have their own bar."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _candidates(case: Case, seed: int, split: int) -> list[int]:
    """Draw half of the measured responses, or K + 1 if that is more, by a hash of (seed, split, id)."""
    count = len(case.losses)
    random = _random(case.id, seed, b"split %d" % split)
    return sorted(random.permutation(count)[: max((count + 1) // 2, len(case.kept) + 1)].tolist())


def _sample(chosen: Sequence[Kept], pool: Dataset, count: int | None, seed: int) -> list[Kept]:
    if count is None or count >= len(chosen):
        return list(chosen)
    names = pool["id"]
    order = sorted(chosen, key=lambda kept: digest(b"audit", str(seed).encode(), names[kept.row].encode()))
    return sorted(order[:count], key=lambda kept: kept.row)


def _cases(some: Sequence[Kept], rows: Dataset, found: "Measurement", aggregation: LossAggregation) -> list[Case]:
    """Return the groups that have both kept and left-out responses among the measured ones."""
    kept_of = {rows[number]["id"]: (number, kept) for number, kept in enumerate(some)}
    cases = []
    for group, losses in zip(found.groups, found.losses(aggregation), strict=True):
        number, kept = kept_of[group.id]
        places = [group.places.index(place) for place in kept.places if place in group.places]
        if 0 < len(places) < len(losses):
            cases.append(Case(number, group.id, group.places, places, losses, group.pairs, group.trained_tokens))
    return cases


def _add_gradients(
    cases: Sequence[Case], model: "Model", aggregation: LossAggregation, seed: int, progress: Progress
) -> None:
    from mrt_plugin.planning.gradients import gradient_products

    done, total = 0, sum(len(case.pairs) for case in cases)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("gradients", done, total)

    products = gradient_products(model, [case.pairs for case in cases], seed=seed, progress=advance)
    for case, table in zip(cases, products, strict=True):
        scale = 1 / case.lengths if aggregation == "response" else np.ones(len(case.lengths))
        case.products = table * scale[:, None] * scale


def _random(name: str, seed: int, what: bytes) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(digest(what, str(seed).encode(), name.encode()), "little"))


def _warnings(result: dict[str, Any]) -> list[str]:
    """Warn if the selection clearly differs from its pool."""
    lines = []
    gradient, splits, loss = result["gradient"], result["splits"], result["loss"]
    if gradient is not None:
        line = (
            f"the mean cosine of a prompt's kept gradient with its pool's is {gradient['cosine']:.2f}, where random_k "
            f"has {gradient['random_k_cosine']:.2f}"
        )
        if _below_zero(gradient["cosine_interval"]):
            lines.append(f"The selection points away from its pool: {line}. Training on it unlearns part of the pool.")
        elif _below_zero(gradient["difference_interval"]):
            lines.append(f"The selection points less along its pool's gradient than random_k: {line}.")
    if splits is not None and _below_zero(splits["selection"]["cosine_interval"]):
        lines.append(
            f"On halves of the pools, what {splits['selector']} keeps points away from the responses it did not see: "
            f"cosine {splits['selection']['cosine']:.2f}, random_k {splits['random_k']['cosine']:.2f}."
        )
    if loss is not None and (loss["emse_difference_interval"] or [0])[0] > 0:
        lines.append(
            f"The loss of the kept responses estimates their pool's worse than random_k would: mean squared error "
            f"{loss['emse']:.3g} against {loss['random_k_emse']:.3g}."
        )
    length = result["length"]
    low, high = length["random_k_interval"]
    if not low <= length["kept"] <= high:
        side = "longer" if length["ratio"] > 1 else "shorter"
        lines.append(
            f"The kept responses are {abs(length['ratio'] - 1):.0%} {side} than their pools' ({length['kept']:.0f} "
            f"{length['unit']} against {length['pool']:.0f}; random_k stays within {low:.0f} to {high:.0f}): the "
            "model will learn that length."
        )
    coverage = result["coverage"]
    if _below_zero(coverage["difference_interval"]):
        lines.append(
            f"The kept responses cover {coverage['clusters_covered']:.0%} of their pools' clusters, random_k "
            f"{coverage['random_k']:.0%}: kinds of answers are missing."
        )
    return lines


def _notes(result: dict[str, Any], has_model: bool) -> list[str]:
    """Return the assumptions and limits of the audit."""
    groups = result["groups"]
    lines = ["The pool stands for the truth: what it lacks, an audit cannot miss."]
    if groups["audited"] < FEWEST:
        lines.append(f"Fewer than {FEWEST} prompts have no intervals, and warnings that rest on one are not given.")
    if groups["kept_whole"]:
        lines.append(f"{groups['kept_whole']:,} pools were kept whole and are left out here.")
    if not has_model:
        lines.append("Without --model nothing is said about loss and gradient.")
    elif result["splits"] is None:
        lines.append(
            "Bias and variance cannot be told apart from one selection: give --selector, or keep the manifest beside "
            "the selection."
            if result["selector"] is None
            else "The selector was not run again on halves of the pools: they hold fewer than K + 3 responses, or no "
            "scores for it to go by."
        )
    return lines
