"""Augmentation: keep the generated prompts that are new (arXiv 2403.11124).

A generated prompt is kept only if its n-grams overlap little with those of every source prompt and similar prompt.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from mrt_plugin.groups.text import prompt_text
from mrt_plugin.groups.write import write_text
from mrt_plugin.planning.diversity import PromptDiversity, Tokenize, ngrams, prompt_diversity, words
from mrt_plugin.planning.fit import read_lines


@dataclass(frozen=True)
class Candidate:
    """A generated prompt and its supports: the prompts it was generated from, if known."""

    prompt: str
    supports: Sequence[str] = ()


@dataclass(frozen=True)
class Novelty:
    """Decision about a candidate, with the overlap that it is based on."""

    prompt: str
    kept: bool
    overlap: float
    """Largest Jaccard overlap with a support, an owned prompt or a candidate kept earlier."""
    nearest: str | None


@dataclass(frozen=True)
class Augmented:
    """Numbers of candidates and the prompt diversity before and after."""

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
    """Greedily keep the candidates whose n-grams overlap by less than `threshold` with each prompt they may repeat.

    These are its supports, all owned prompts, and every candidate kept before it. A candidate shorter than an n-gram
    is dropped with an overlap of 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold!r} must be above 0 and at most 1.")
    texts: list[str] = []
    sizes: list[int] = []
    where: dict[tuple[Any, ...], list[int]] = defaultdict(list)

    def grams_of(text: str) -> set[tuple[Any, ...]]:
        return set(ngrams(tokenize(text), order))

    def add(text: str, grams: set[tuple[Any, ...]]) -> None:
        for gram in grams:
            where[gram].append(len(texts))
        texts.append(text)
        sizes.append(len(grams))

    for text in owned:
        add(text, grams_of(text))
    verdicts = []
    for candidate in candidates:
        grams = grams_of(candidate.prompt)
        if not grams:
            verdicts.append(Novelty(candidate.prompt, False, 1.0, None))
            continue
        # Only prompts that share an n-gram can overlap. The index finds them without comparing all prompts.
        shared = Counter(place for gram in grams for place in where.get(gram, ()))
        found = [(common / (len(grams) + sizes[place] - common), texts[place]) for place, common in shared.items()]
        for support in candidate.supports:
            theirs = grams_of(support)
            found.append((len(grams & theirs) / len(grams | theirs), support))
        overlap, nearest = max(found, key=lambda item: item[0], default=(0.0, None))
        kept = overlap < threshold
        if kept:
            add(candidate.prompt, grams)
        verdicts.append(Novelty(candidate.prompt, kept, overlap, nearest if overlap > 0 else None))
    return verdicts


def augment_file(
    candidates: Path,
    groups: Dataset,
    output: Path,
    *,
    threshold: float = 0.3,
    p: float = 0.5,
    **how: Any,
) -> Augmented:
    """Filter a JSONL file of candidates against the prompts of `groups`, and write the kept rows unchanged.

    A row has `prompt` and optionally `supports`, a list of prompts. `how` are the `order` and `tokenize` of n-grams.
    """

    def read(row: Any) -> Candidate:
        return Candidate(prompt_text(row["prompt"]), [prompt_text(item) for item in row.get("supports") or []])

    lines = read_lines(candidates, read, 'is not a candidate: write {"prompt": "...", "supports": ["..."]}.')
    owned = [prompt_text(prompt) for prompt in groups["prompt"]]
    verdicts = filter_candidates([row for _, _, row in lines], owned, threshold=threshold, **how)
    written = (f"{line}\n" for (_, line, _), item in zip(lines, verdicts, strict=True) if item.kept)
    write_text(output, "".join(written))
    kept = [item.prompt for item in verdicts if item.kept]
    return Augmented(
        candidates=len(lines),
        kept=len(kept),
        dropped=[item for item in verdicts if not item.kept],
        before=prompt_diversity(owned, p=p, **how),
        after=prompt_diversity([*owned, *kept], p=p, **how),
    )
