"""Export groups for other trainers: flat rows for SFT, pairs for DPO."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrt_plugin.groups.messages import response_text
from mrt_plugin.groups.write import whole_file
from mrt_plugin.scoring.cosine import cosine_matrix
from mrt_plugin.scoring.embedders import Embedder, load_embedder

KINDS = ("sft", "dpo", "divpo")
RANKED = ("dpo", "divpo")
"""The exports that need scores."""

DIVPO_SHARE = 0.25
"""Share of a pool's scores, from the top and from the bottom, that counts as good and as bad; at least one each."""


@dataclass(frozen=True)
class Exported:
    """An exported file. `skipped` groups give no pair: one response, all scores equal, or nothing that differs."""

    kind: str
    path: Path
    rows: int
    skipped: int


def export(
    rows: Iterable[dict[str, Any]], kind: str, path: str | Path, *, embedder: Embedder | None = None
) -> Exported:
    """Write JSON lines.

    Args:
        rows: groups.
        kind: `sft` writes one line per response. `dpo` writes one per group, with its best and its worst response.
            `divpo` writes one per group as well: a rare response among the good ones against a common one among the
            bad ones (`find_rare_pair`).
        path: a `.jsonl` file.
        embedder: divpo: compares responses; by default `lexical`.
    """
    path = Path(path)
    check_export(kind, path)
    compare = embedder or load_embedder("lexical")
    written = skipped = 0
    with whole_file(path) as file:
        for row in rows:
            lines = list(_flat(row) if kind == "sft" else _pair(row) if kind == "dpo" else _rare_pair(row, compare))
            skipped += not lines
            written += len(lines)
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return Exported(kind, path, written, skipped)


def check_export(kind: str, path: Path) -> None:
    if kind not in KINDS:
        raise ValueError(f"there is no export {kind!r}: choose one of {', '.join(KINDS)}.")
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: exports are JSON lines; write to a .jsonl file.")


def check_scores(columns: Mapping[str, Any]) -> None:
    if columns.get("scores") is None:
        raise ValueError("pairs for DPO need scores, and the groups have none: leave the export out, or score them.")


def _flat(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    weights = row.get("weights") or [None] * len(row["responses"])
    for response, weight in zip(row["responses"], weights, strict=True):
        line = dict(zip(("prompt", "completion"), _same_form(row["prompt"], response), strict=True))
        yield line if weight is None else {**line, "weight": weight}


def _pair(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the first of the responses with the highest score, and of those with the lowest, if they differ."""
    check_scores(row)
    scores = row["scores"]
    if max(scores) > min(scores):
        yield _preference(row, scores.index(max(scores)), scores.index(min(scores)))


def _rare_pair(row: dict[str, Any], embedder: Embedder) -> Iterator[dict[str, Any]]:
    """Yield the pair of `find_rare_pair`, if there is one, with the rarity of both responses."""
    check_scores(row)
    if len(row["responses"]) < 2:
        return
    cosines = cosine_matrix([response_text(response) for response in row["responses"]], embedder)
    found = find_rare_pair(row["scores"], cosines)
    if found is not None:
        rare = rarities(cosines)
        shown = zip(("rarity_chosen", "rarity_rejected"), found, strict=True)
        yield {**_preference(row, *found), **{name: round(float(rare[place]), 6) for name, place in shown}}


def rarities(cosines: np.ndarray) -> np.ndarray:
    """Return 1 minus the mean cosine of each response to the others of its pool, [N], from cosines [N, N]."""
    others = cosines.sum(axis=1) - cosines.diagonal()
    return np.asarray(1 - others / (len(cosines) - 1))


def find_rare_pair(scores: Sequence[float], cosines: np.ndarray, share: float = DIVPO_SHARE) -> tuple[int, int] | None:
    """Return the chosen and the rejected response as Diverse Preference Optimization pairs them (arXiv 2501.18101).

    Good responses have one of the `share` highest scores of the pool, bad ones one of the `share` lowest, with ties.
    The rarest of the good is chosen, and the most common of the bad is rejected. Rarity is `rarities`; the authors
    use a model's probability, word frequencies or a judge. Of equally rare ones, the score decides, then the order.

    Args:
        scores: [N].
        cosines: [N, N].
        share: above 0, at most 0.5; at least one score counts.

    Returns:
        Two places in the pool; None if no good response scores above a bad one.

    Example:

    >>> alike = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]])
    >>> find_rare_pair([1.0, 0.0, 1.0], alike)
    (2, 1)
    """
    ordered = sorted(scores)
    count = max(1, math.floor(share * len(ordered)))
    low, high = ordered[count - 1], ordered[-count]
    if not high > low:
        return None
    rare = rarities(cosines)
    good = [place for place, score in enumerate(scores) if score >= high]
    bad = [place for place, score in enumerate(scores) if score <= low]
    chosen = max(good, key=lambda place: (round(float(rare[place]), 6), scores[place], -place))
    rejected = min(bad, key=lambda place: (round(float(rare[place]), 6), scores[place], place))
    return chosen, rejected


def _preference(row: dict[str, Any], better: int, worse: int) -> dict[str, Any]:
    prompt, chosen = _same_form(row["prompt"], row["responses"][better])
    rejected = _same_form(row["prompt"], row["responses"][worse])[1]
    scores = {"score_chosen": row["scores"][better], "score_rejected": row["scores"][worse]}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **scores}


def _same_form(prompt: Any, response: Any) -> tuple[Any, Any]:
    """Convert both to strings or both to messages, since other trainers do not accept one of each."""
    if isinstance(prompt, str) == isinstance(response, str):
        return prompt, response
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}], response
    return prompt, [{"role": "assistant", "content": response}]
