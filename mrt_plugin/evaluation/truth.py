"""Distances of a model to a known truth: all right responses of a prompt, with their probabilities."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.groups import prompt_key
from mrt_plugin.groups.sources import open_source
from mrt_plugin.models.log_likelihood import Model, log_likelihoods


class KnownTruth(Protocol):
    """A prompt, all its right responses (modes), and their probabilities, which sum to 1."""

    @property
    def prompt(self) -> Any: ...
    @property
    def modes(self) -> Sequence[Any]: ...
    @property
    def probabilities(self) -> Sequence[float]: ...


@dataclass(frozen=True)
class Truth:
    """A known truth that was read from a file."""

    prompt: Any
    modes: tuple[Any, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class TruthDistance:
    """Distances between a model's distribution q of complete responses and the true p: means over prompts."""

    kl: float
    """KL(p || q) over the modes, in nats."""
    elsewhere: float
    """The model's probability of a response that is not a mode."""
    coverage: float
    """The sum of p over the modes to which the model gives at least half of their true probability."""


def truth_distance(model: Model, encoder: Encoder, truths: Sequence[KnownTruth], **how: Any) -> TruthDistance:
    """Compare a model with a known truth by scoring every mode of every prompt. `how` is for `log_likelihoods`."""
    return distance_of(mode_scores(model, encoder, truths, **how), truths)


def mode_scores(model: Model, encoder: Encoder, truths: Sequence[KnownTruth], **how: Any) -> list[np.ndarray]:
    """Return the log-probability in nats that a model gives each mode, an array [modes] per prompt."""
    pairs = [pair for truth in truths for pair in encoder.encode_group(truth.prompt, truth.modes)]
    stops = np.cumsum([len(truth.modes) for truth in truths])
    return np.split(log_likelihoods(model, pairs, **how), stops[:-1])


def distance_of(scores: Sequence[np.ndarray], truths: Sequence[KnownTruth]) -> TruthDistance:
    """Return the distance of a model that gives mode j of prompt i the log-probability `scores[i][j]`, in nats."""
    return TruthDistance(*np.mean(distances(scores, truths), axis=0).tolist())


def distances(scores: Sequence[np.ndarray], truths: Sequence[KnownTruth]) -> np.ndarray:
    """Return the distance of each prompt, [prompts, 3]: the fields of `TruthDistance`, in their order."""
    rows = []
    for log_q, truth in zip(scores, truths, strict=True):
        p, q = np.array(truth.probabilities), np.exp(log_q)
        known = p > 0
        kl = (p[known] * (np.log(p[known]) - log_q[known])).sum()
        rows.append((kl, 1 - q.sum(), p[q >= p / 2].sum()))
    return np.array(rows)


def read_truth(path: str | Path, prompts: Iterable[Any]) -> list[Truth]:
    """Read the truth of each of `prompts`, in their order. Other prompts of the file are ignored.

    A row has `prompt`, `modes` (all right responses, each once) and `probabilities`, which sum to 1.

    Raises:
        DataError: for a row of another form, with its row, column and remedy.
        ValueError: if a prompt has no truth in the file.

    Example:

    ```python
    from mrt_plugin.evaluation import read_cases
    from mrt_plugin.evaluation.truth import read_truth

    truths = read_truth("truth.jsonl", [case.prompt for case in read_cases("held_out.jsonl")])
    ```
    """
    problems, rows = open_source(path)
    found: dict[str, Truth] = {}
    for place, row in rows:
        prompt, modes, chances = (row.get(name) for name in ("prompt", "modes", "probabilities"))
        if prompt is None or not isinstance(modes, list) or not isinstance(chances, list):
            problems.add(place, "modes", "a truth has `prompt`, `modes` and `probabilities`.")
        elif len({prompt_key(mode) for mode in modes}) != len(modes):
            problems.add(place, "modes", "a right response is there twice: add up its probabilities.")
        elif len(modes) != len(chances) or not _sums_to_one(chances):
            problems.add(place, "probabilities", "write one for each of `modes`, none negative, 1 in all.")
        else:
            found[prompt_key(prompt)] = Truth(prompt, tuple(modes), tuple(chances))
    problems.raise_any()
    asked = list(prompts)
    missing = [prompt for prompt in asked if prompt_key(prompt) not in found]
    if missing:
        raise ValueError(
            f"{path} has no truth for {len(missing):,} of {len(asked):,} prompts (first: {str(missing[0])[:60]!r}): "
            "add them, or evaluate on the prompts that have one."
        )
    return [found[prompt_key(prompt)] for prompt in asked]


def _sums_to_one(chances: list[Any]) -> bool:
    numbers = all(isinstance(one, int | float) and one >= 0 for one in chances)
    return numbers and math.isclose(math.fsum(chances), 1, rel_tol=1e-6)
