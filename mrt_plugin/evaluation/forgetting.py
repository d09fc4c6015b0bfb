"""What fine-tuning cost elsewhere: the loss on a few general texts, and scores of tasks, before and after.

Everything is put in **points**, so that one pair of thresholds serves. A point of a task's score is one hundredth of
it (an accuracy of 0.62 against 0.64 has lost 2 points). A point of the probe is one per cent of the probability that
the model gives to a token, by the geometric mean: 100·(1 - exp(NLL before - NLL after)), NLL in nats per token.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.models.log_likelihood import Model, log_likelihoods
from mrt_plugin.models.tokenizer_match import check_ids
from mrt_plugin.planning.paired import Bootstrap, Measured

FLAGGED = 2.0
"""Points lost from which a drop is flagged."""

SIGNIFICANT = 5.0
"""Points lost from which it is called significant. A rule of thumb for size, not a test: the interval tells chance."""


@dataclass(frozen=True)
class Text:
    """One text of the probe."""

    kind: str
    """facts, prose, code, questions or reasoning."""
    text: str


@cache
def probe() -> tuple[Text, ...]:
    """The built-in texts: 60 short ones of five kinds, written for this package.

    Example:

    >>> len(probe()), probe()[0].kind
    (60, 'facts')
    """
    lines = files("mrt_plugin.evaluation").joinpath("general.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Text(**json.loads(line)) for line in lines)


@dataclass(frozen=True)
class ProbeNLL:
    """The NLL of the probe's texts, in nats."""

    nll: np.ndarray
    """[n] of each text."""
    tokens: np.ndarray
    """[n] tokens that were predicted: all but the first."""


def probe_nll(model: Model, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text] | None = None) -> ProbeNLL:
    """The loss of a model on plain texts, without a chat template.

    Raises:
        ValueError: if the tokenizer gives a token that the model does not have.
    """
    pairs = []
    for text in probe() if texts is None else texts:
        ids = list(tokenizer(text.text, verbose=False)["input_ids"])
        pairs.append(Pair(ids, [False] + [True] * (len(ids) - 1)))
    check_ids(pairs, model)
    return ProbeNLL(-log_likelihoods(model, pairs), np.array([pair.trained_length for pair in pairs]))


def points_of_nll(before: float, after: float) -> float:
    """Points lost on the probe; below 0 for a gain.

    Example:

    >>> round(points_of_nll(2.0, 2.05), 2)
    4.88
    """
    return 100 * (1 - math.exp(before - after))


def verdict(points: float) -> str:
    """What a loss of so many points is called.

    Example:

    >>> verdict(1.9), verdict(2.0), verdict(5.0)
    ('kept', 'flagged', 'significant')
    """
    return "significant" if points >= SIGNIFICANT else "flagged" if points >= FLAGGED else "kept"


def compare_probe(before: ProbeNLL, after: ProbeNLL, texts: Sequence[Text] | None = None, *, seed: int = 0) -> Any:
    """The probe before and after, over all texts and for each kind: JSON-ready rows.

    Returns:
        Rows of `kind`, `before` and `after` (nats per token), `points` lost with their `interval` (bootstrap over the
        texts) and `verdict`; None if the tokenizers split the texts differently, so that tokens cannot be compared.
    """
    if not np.array_equal(before.tokens, after.tokens):
        return None
    kinds = np.array([text.kind for text in (probe() if texts is None else texts)])
    rows = []
    for kind in ("all", *dict.fromkeys(kinds.tolist())):
        chosen = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
        one, other = (Measured(part.nll[chosen], part.tokens[chosen].astype(float)) for part in (after, before))
        change, interval, _ = Bootstrap(int(chosen.sum()), seed).difference(one, other)
        assert change is not None
        points = points_of_nll(0.0, change)
        rows.append(
            {
                "kind": kind,
                "texts": int(chosen.sum()),
                "before": other.value,
                "after": one.value,
                "points": points,
                "interval": None if interval is None else [points_of_nll(0.0, end) for end in interval],
                "verdict": verdict(points),
            }
        )
    return rows


def compare_tasks(before: dict[str, Any], after: dict[str, Any], *, seed: int = 0) -> list[dict[str, Any]]:
    """Scores of tasks before and after, as `harness.run_tasks` gives them: JSON-ready rows.

    Only scores between 0 and 1 that are better when higher have points; the others are listed without. The interval
    comes from a bootstrap over the documents, which are the same before and after. A score that is no mean over
    documents (a group of tasks) has 1.96 standard errors of the difference, the two runs taken for independent: as a
    rule that is too wide.
    """
    rows = []
    for task, metrics in after.items():
        for metric, score in metrics.items():
            old = before.get(task, {}).get(metric)
            row: dict[str, Any] = {
                "task": task,
                "metric": metric,
                "before": old and old["value"],
                "after": score["value"],
            }
            row |= {"points": None, "interval": None, "verdict": None}
            if old is not None and score["higher_is_better"] and 0 <= old["value"] <= 1 and 0 <= score["value"] <= 1:
                points = 100 * (old["value"] - score["value"])
                row |= {"points": points, "verdict": verdict(points)}
                paired = _paired(old.get("documents"), score.get("documents"), seed)
                if paired is not None:
                    row["interval"] = paired
                elif old["stderr"] is not None and score["stderr"] is not None:
                    half = 196 * math.hypot(old["stderr"], score["stderr"])
                    row["interval"] = [points - half, points + half]
            rows.append(row)
    return rows


def _paired(before: dict[int, float] | None, after: dict[int, float] | None, seed: int) -> list[float] | None:
    """The interval of the points lost, over the documents scored in both runs; None if there are too few."""
    both = sorted((before or {}).keys() & (after or {}).keys())
    if not before or not after or not both:
        return None
    old, new = (Measured.mean(np.array([part[document] for document in both])) for part in (before, after))
    _, interval, _ = Bootstrap(len(both), seed).difference(old, new)
    return None if interval is None else [100 * end for end in interval]
