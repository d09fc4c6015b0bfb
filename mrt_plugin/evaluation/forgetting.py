"""Measure forgetting: the loss on a probe of general texts and the scores of tasks, before and after fine-tuning.

Changes are given in points, so that the same two thresholds apply to all. A point of a task's score is 0.01.
"""

import json
import math
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.evaluation.harness import Scores
from mrt_plugin.evaluation.result import Interval, ProbeChange, TaskChange
from mrt_plugin.models.log_likelihood import Model, check_ids, log_likelihoods
from mrt_plugin.planning.paired import Bootstrap, Measured

FLAGGED = 2.0
"""Points lost at which a drop is flagged."""

SIGNIFICANT = 5.0
"""Points lost at which a drop is called significant.

This is a rule of thumb for its size, not a statistical test. The interval shows whether the drop may be chance.
"""


class ProbeText(NamedTuple):
    """One text of the probe. Its kind is facts, prose, code, questions or reasoning."""

    kind: str
    text: str


@cache
def probe() -> tuple[ProbeText, ...]:
    """Return the built-in probe: 60 short texts of five kinds, written for this package.

    Example:

    >>> len(probe()), probe()[0].kind
    (60, 'facts')
    """
    lines = files("mrt_plugin.evaluation").joinpath("general.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(ProbeText(**json.loads(line)) for line in lines)


@dataclass(frozen=True)
class ProbeNLL:
    """NLL of each of the probe's n texts, in nats, and its predicted tokens (all but the first), each [n]."""

    nll: np.ndarray
    tokens: np.ndarray


def probe_nll(model: Model, tokenizer: PreTrainedTokenizerBase) -> ProbeNLL:
    """Measure a model's loss on the probe's texts, without a chat template."""
    encoded = [list(tokenizer(text.text, verbose=False)["input_ids"]) for text in probe()]
    pairs = [Pair(ids, [False] + [True] * (len(ids) - 1)) for ids in encoded]
    check_ids(pairs, model)
    return ProbeNLL(-log_likelihoods(model, pairs), np.array([pair.trained_length for pair in pairs]))


def points_of_nll(before: float, after: float) -> float:
    """Return the points lost on the probe, 100·(1 - exp(before - after)); negative for a gain.

    A point is one per cent of the probability that the model gives to a token (geometric mean). The arguments are
    negative log-likelihoods in nats per token.

    Example:

    >>> round(points_of_nll(2.0, 2.05), 2)
    4.88
    """
    return 100 * (1 - math.exp(before - after))


def verdict(points: float) -> str:
    """Return the verdict for a number of points lost.

    Example:

    >>> verdict(1.9), verdict(2.0), verdict(5.0)
    ('kept', 'flagged', 'significant')
    """
    return "significant" if points >= SIGNIFICANT else "flagged" if points >= FLAGGED else "kept"


def compare_probe(before: ProbeNLL, after: ProbeNLL, *, seed: int = 0) -> list[ProbeChange] | None:
    """Compare the probe before and after fine-tuning, over all texts and for each kind.

    The intervals come from a bootstrap over the texts. The result is None if the tokenizers split the texts
    differently, so that tokens cannot be compared.
    """
    if not np.array_equal(before.tokens, after.tokens):
        return None
    kinds = np.array([text.kind for text in probe()])
    rows = []
    for kind in ("all", *dict.fromkeys(kinds.tolist())):
        chosen = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
        texts = int(chosen.sum())
        one, other = (Measured(part.nll[chosen], part.tokens[chosen].astype(float)) for part in (after, before))
        change, ends, _ = Bootstrap(texts, seed).difference(one, other)
        assert change is not None
        points = points_of_nll(0.0, change)
        interval = ends and [points_of_nll(0.0, end) for end in ends]
        rows.append(ProbeChange(kind, texts, other.value, one.value, points, interval, verdict(points)))
    return rows


def compare_tasks(before: Scores, after: Scores, *, seed: int = 0) -> list[TaskChange]:
    """Compare scores of tasks before and after fine-tuning.

    Points are given only for scores between 0 and 1 that are better when higher; other scores have none. The interval
    comes from a bootstrap over the documents, which are the same before and after. If a score is not a mean over
    documents (a group of tasks), its interval is 1.96 standard errors of the difference. This assumes independent
    runs, so it is usually too wide.
    """
    rows = []
    for task, metric in ((task, metric) for task, metrics in after.items() for metric in metrics):
        new, old = after[task][metric], before.get(task, {}).get(metric)
        row = TaskChange(task, metric, old.value if old else None, new.value)
        if old is not None and new.higher_is_better and 0 <= old.value <= 1 and 0 <= new.value <= 1:
            points = 100 * (old.value - new.value)
            interval = _paired(old.documents or {}, new.documents or {}, seed)
            if interval is None and old.stderr is not None and new.stderr is not None:
                half = 196 * math.hypot(old.stderr, new.stderr)
                interval = [points - half, points + half]
            row = replace(row, points=points, interval=interval, verdict=verdict(points))
        rows.append(row)
    return rows


def _paired(before: dict[int, float], after: dict[int, float], seed: int) -> Interval:
    """Return the interval of the points lost, over the documents scored in both runs; None if there are too few."""
    both = sorted(before.keys() & after.keys())
    if not both:
        return None
    old, new = (Measured.mean(np.array([part[document] for document in both])) for part in (before, after))
    _, interval, _ = Bootstrap(len(both), seed).difference(old, new)
    return interval and [100 * end for end in interval]
