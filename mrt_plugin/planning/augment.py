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
from mrt_plugin.planning.diversity import CUT, PromptDiversity, Tokenize, ngrams, prompt_diversity, words
from mrt_plugin.planning.fit import read_lines


@dataclass(frozen=True)
class Candidate:
    """A generated prompt and its supports: the prompts it was generated from, if known."""

    prompt: str
    supports: Sequence[str] = ()


@dataclass(frozen=True)
class Novelty:
    """Decision about a candidate, with the overlap that it is based on."""

    kept: bool
    overlap: float
    """Largest Jaccard overlap with a support, an owned prompt or a candidate kept earlier."""
    nearest: str | None
    """The prompt with the largest overlap."""


@dataclass(frozen=True)
class Dropped:
    """A candidate that was not kept, and the prompt that it overlaps most."""

    prompt: str
    overlap: float
    nearest: str | None


@dataclass(frozen=True)
class Augmented:
    """Numbers of candidates and the prompt diversity before and after."""

    candidates: int
    kept: int
    dropped: list[Dropped]
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
    """Greedily keep the candidates whose n-grams are new.

    The Jaccard overlap of two prompts is the size of the intersection of their n-gram sets divided by that of their
    union. A candidate is compared with its supports, with all owned prompts, and with every candidate kept before it.

    Args:
        candidates: candidates in the order in which they are tried.
        owned: the existing prompts.
        threshold: a candidate with an overlap at or above this value is dropped.
        order: tokens per n-gram.
        tokenize: function from a text to its tokens.

    Returns:
        One verdict per candidate. A candidate shorter than an n-gram is dropped with an overlap of 1.

    Raises:
        ValueError: for a threshold outside (0, 1].

    Example:

    >>> found = filter_candidates([Candidate("Name a big fruit."), Candidate("Who was Ada?")], ["Name a fruit."])
    >>> [(item.kept, round(item.overlap, 2)) for item in found]
    [(False, 0.4), (True, 0.0)]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold!r} must be above 0 and at most 1.")
    texts: list[str] = []
    sizes: list[int] = []
    where: dict[tuple[Any, ...], list[int]] = defaultdict(list)

    def grams_of(text: str) -> set[tuple[Any, ...]]:
        return set(ngrams(tokenize(text)[:CUT], order))

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
            verdicts.append(Novelty(False, 1.0, None))
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
        verdicts.append(Novelty(kept, overlap, nearest if overlap > 0 else None))
    return verdicts


def augment_file(
    candidates: Path,
    groups: Dataset,
    output: Path,
    *,
    threshold: float = 0.3,
    order: int = 2,
    p: float = 0.5,
    tokenize: Tokenize = words,
) -> Augmented:
    """Filter a JSONL file of candidates against the prompts of `groups`, and write the kept rows unchanged.

    A row has `prompt` (string or messages) and optionally `supports` (a list of prompts).

    Raises:
        DataError: if lines are not valid candidates; lists them.
    """

    def read(row: Any) -> Candidate:
        return Candidate(prompt_text(row["prompt"]), [prompt_text(item) for item in row.get("supports") or []])

    expected = 'is not a candidate: write {"prompt": "...", "supports": ["..."]}.'
    lines = read_lines(candidates, read, expected)
    owned = [prompt_text(prompt) for prompt in groups["prompt"]]
    rows = [row for _, _, row in lines]
    verdicts = filter_candidates(rows, owned, threshold=threshold, order=order, tokenize=tokenize)
    pairs = list(zip(lines, verdicts, strict=True))
    write_text(output, "".join(f"{line}\n" for (_, line, _), verdict in pairs if verdict.kept))
    kept = [row.prompt for (_, _, row), verdict in pairs if verdict.kept]
    return Augmented(
        candidates=len(lines),
        kept=len(kept),
        dropped=[Dropped(row.prompt, item.overlap, item.nearest) for (_, _, row), item in pairs if not item.kept],
        before=prompt_diversity(owned, tokenize=tokenize, order=order, p=p),
        after=prompt_diversity([*owned, *kept], tokenize=tokenize, order=order, p=p),
    )
