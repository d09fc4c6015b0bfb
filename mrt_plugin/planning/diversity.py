"""Measure the diversity of prompts and responses without a model, and keep the generated prompts that are new."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from scipy.stats import linregress

from mrt_plugin.groups.messages import prompt_text, response_text
from mrt_plugin.groups.write import write_text
from mrt_plugin.planning.fit import read_lines
from mrt_plugin.planning.progress import Progress
from mrt_plugin.scoring.cosine import cosine_matrix, mean_distance, nearest_cosines
from mrt_plugin.scoring.embedders import Embedder, load_embedder

Tokenize = Callable[[str], Sequence[Any]]

CUT = 512
"""Number of tokens counted per prompt, as in arXiv 2403.11124."""

NEAR = 0.9
"""A prompt is redundant if its nearest other prompt has at least this cosine."""


def words(text: str) -> list[str]:
    """Split a text into words and single punctuation signs: the tokens without a tokenizer."""
    return re.findall(r"\w+|[^\w\s]", text)


def token_ids(tokenizer: Any) -> Tokenize:
    return lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def ngrams(tokens: Sequence[Any], order: int) -> list[tuple[Any, ...]]:
    """Return the n-grams of a prompt's first 512 tokens, in order and with repeats."""
    return list(zip(*(tokens[start:CUT] for start in range(order)), strict=False))


@dataclass(frozen=True)
class PromptDiversity:
    """Diversity of a prompt set, d = r·n^p, with r the share of distinct n-grams (arXiv 2403.11124)."""

    d: float
    r: float
    prompts: int
    order: int
    p: float
    distinct: int
    total: int


def prompt_diversity(
    prompts: Iterable[str], *, tokenize: Tokenize = words, order: int = 2, p: float = 0.5
) -> PromptDiversity:
    """Measure d = r · n^p of n prompts. Compare d only between sets with the same tokenizer, order and p."""
    distinct: set[tuple[Any, ...]] = set()
    count = total = 0
    for prompt in prompts:
        found = ngrams(tokenize(prompt), order)
        distinct.update(found)
        total += len(found)
        count += 1
    if not total:
        raise ValueError(f"None of {count} prompts has {order} tokens: there are no {order}-grams to count.")
    r = len(distinct) / total
    return PromptDiversity(r * count**p, r, count, order, p, len(distinct), total)


class DiversityFit(NamedTuple):
    """Line score = slope·r·n^p + intercept, fitted over several training sets."""

    p: float
    slope: float
    intercept: float
    mse: float


def fit_diversity(
    sets: Sequence[PromptDiversity], scores: Sequence[float], *, powers: Sequence[float] = tuple(np.arange(41) / 20)
) -> DiversityFit:
    """Fit a line of score on d over several prompt sets, with the p in `powers` of least squared error."""
    if len(sets) != len(scores) or len(sets) < 3:
        raise ValueError(f"{len(sets)} sets and {len(scores)} scores: a line needs at least 3 of each, one per set.")
    if len({item.order for item in sets}) > 1:
        raise ValueError("The sets were measured with n-grams of different orders: measure them in the same way.")
    fits = []
    for p in powers:
        d = np.array([item.r * item.prompts**p for item in sets])
        line = linregress(d, scores)
        mse = np.mean((line.slope * d + line.intercept - scores) ** 2)
        fits.append(DiversityFit(*map(float, (p, line.slope, line.intercept, mse))))
    return min(fits, key=lambda fit: fit.mse)


@dataclass(frozen=True)
class Redundancy:
    """Mean cosine of a prompt with its nearest other, and the `share` of prompts where it is at least `near`."""

    nearest: float
    share: float
    near: float
    prompts: int


def prompt_redundancy(prompts: Sequence[str], embedder: Embedder) -> Redundancy:
    """Measure how close each of at least 2 prompts is to its nearest other prompt. Computes O(n²) products."""
    nearest = nearest_cosines(embedder(list(prompts)))
    return Redundancy(float(nearest.mean()), float((nearest >= NEAR - 1e-9).mean()), NEAR, len(prompts))


def response_diversity(responses: Sequence[Any], embedder: Embedder) -> float:
    """Return 1 minus the mean cosine over pairs of one prompt's responses; NaN for fewer than 2 responses."""
    return mean_distance(cosine_matrix([response_text(response) for response in responses], embedder))


def effective_k(k: float, similarity: float) -> float:
    """Return k_eff = K/(1 + (K-1)·mean similarity), a heuristic: similar embeddings do not imply equal losses."""
    return k / (1 + (k - 1) * max(similarity, 0.0))


@dataclass(frozen=True)
class Diversity:
    embedder: str
    prompt: PromptDiversity
    redundancy: Redundancy | None
    response_diversity: float | None
    effective_k: dict[int, float]
    tokens: str


def measure_diversity(groups: Dataset, chosen: Dataset, embedder: str, progress: Progress, **how: Any) -> Diversity:
    """Measure the prompt diversity of all groups, and redundancy and response diversity of the `chosen` groups."""
    used, spread = load_embedder(embedder), []
    for number, responses in enumerate(chosen["responses"]):
        spread.append(response_diversity(responses, used))
        progress("response diversity", number + 1, len(chosen))
    known = [value for value in spread if not math.isnan(value)]
    mean = float(np.mean(known)) if known else None
    most = max(map(len, chosen["responses"]))
    prompts = [prompt_text(prompt) for prompt in chosen["prompt"]]
    return Diversity(
        embedder=used.name,
        prompt=prompt_diversity(map(prompt_text, groups["prompt"]), **how),
        redundancy=prompt_redundancy(prompts, used) if len(prompts) > 1 else None,
        response_diversity=mean,
        effective_k={} if mean is None else {k: effective_k(k, 1 - mean) for k in range(1, most + 1)},
        tokens="words" if how["tokenize"] is words else "the model's tokens",
    )


class Candidate(NamedTuple):
    """A generated prompt and the prompts it was generated from, if known."""

    prompt: str
    supports: Sequence[str] = ()


@dataclass(frozen=True)
class Novelty:
    """Largest Jaccard overlap of a candidate with a support, an owned prompt or a candidate kept earlier."""

    prompt: str
    kept: bool
    overlap: float
    nearest: str | None


@dataclass(frozen=True)
class Augmented:
    candidates: int
    kept: int
    dropped: list[Novelty]
    before: PromptDiversity
    after: PromptDiversity


def filter_candidates(
    candidates: Sequence[Candidate],
    owned: Sequence[str],
    *,
    threshold: float = 0.3,
    order: int = 2,
    tokenize: Tokenize = words,
) -> list[Novelty]:
    """Keep each candidate whose n-grams overlap little with its supports, all owned prompts and those kept before it.

    A candidate shorter than an n-gram is dropped with an overlap of 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold!r} must be above 0 and at most 1.")
    known: list[tuple[str, set[Any]]] = []
    where: dict[Any, list[int]] = defaultdict(list)

    def grams_of(text: str) -> set[Any]:
        return set(ngrams(tokenize(text), order))

    def add(text: str, grams: set[Any]) -> None:
        for gram in grams:
            where[gram].append(len(known))
        known.append((text, grams))

    for text in owned:
        add(text, grams_of(text))
    verdicts = []
    for prompt, supports in candidates:
        grams = grams_of(prompt)
        # Only prompts that share an n-gram can overlap. The index finds them without comparing all prompts.
        near = [known[place] for place in dict.fromkeys(place for gram in grams for place in where.get(gram, ()))]
        near += [(support, grams_of(support)) for support in supports]
        found = [(len(grams & other) / len(grams | other), text) for text, other in near] if grams else [(1.0, None)]
        overlap, nearest = max(found, key=itemgetter(0), default=(0.0, None))
        if overlap < threshold:
            add(prompt, grams)
        verdicts.append(Novelty(prompt, overlap < threshold, overlap, nearest if overlap > 0 else None))
    return verdicts


def augment_file(
    candidates: Path, groups: Dataset, output: Path, *, threshold: float = 0.3, p: float = 0.5, **how: Any
) -> Augmented:
    """Filter a JSONL file of candidates against the prompts of `groups`, and write the kept rows unchanged.

    `how` are the `order` and `tokenize` of n-grams.
    """

    def read(row: Any) -> Candidate:
        return Candidate(prompt_text(row["prompt"]), [prompt_text(item) for item in row.get("supports") or []])

    lines = read_lines(candidates, read, 'is not a candidate: write {"prompt": "...", "supports": ["..."]}.')
    owned = [prompt_text(prompt) for prompt in groups["prompt"]]
    verdicts = filter_candidates([row for _, _, row in lines], owned, threshold=threshold, **how)
    write_text(output, "".join(f"{line}\n" for (_, line, _), one in zip(lines, verdicts, strict=True) if one.kept))
    kept, dropped = [one.prompt for one in verdicts if one.kept], [one for one in verdicts if not one.kept]
    before, after = (prompt_diversity(texts, p=p, **how) for texts in (owned, [*owned, *kept]))
    return Augmented(len(lines), len(kept), dropped, before, after)
