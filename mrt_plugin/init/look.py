"""Look at a pool before a recipe is written: counts, and lengths in tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.groups.load import read_groups

SAMPLED = 5_000
"""Groups whose lengths are counted, at most: evenly spaced over the data."""


@dataclass(frozen=True)
class DataFacts:
    """Facts of a pool that the choice of values needs."""

    groups: int
    responses: int
    smallest: int
    """Responses of the smallest pool; likewise `middle`, the median, and `largest`."""
    middle: int
    largest: int
    repeated: int
    """Responses that repeat another one of their pool."""
    scored: bool
    """Whether there are scores, and they differ inside at least one pool."""
    prompts: np.ndarray
    """Tokens of the prompts whose lengths were counted, [prompts]."""
    pairs: np.ndarray
    """Tokens of a prompt with a response, for each of their responses, [pairs]."""
    answers: np.ndarray
    """Mean trained tokens of a prompt's responses, [prompts]."""
    notes: tuple[str, ...]
    """What reading reported: dropped, repeated and unused parts."""


def look_at(data: str, tokenizer: Any, source: str | None = None) -> DataFacts:
    """Read a pool and count the tokens of at most `SAMPLED` groups.

    Raises:
        DataError: if the data cannot be read.
        EncodingError: if a group cannot be turned into tokens.
    """
    groups, report = read_groups(data, source=source)
    sizes = np.array([len(responses) for responses in groups["responses"]])
    places = np.unique(np.linspace(0, len(groups) - 1, min(SAMPLED, len(groups))).astype(int))
    encoder = Encoder(tokenizer)
    prompts, pairs, answers = [], [], []
    for group in groups.select(places):
        found = encoder.encode_group(group["prompt"], group["responses"])
        prompts.append(min(len(pair.input_ids) - pair.trained_length for pair in found))
        pairs += [len(pair.input_ids) for pair in found]
        answers.append(np.mean([pair.trained_length for pair in found]))
    scores = groups["scores"] if "scores" in groups.column_names else []
    return DataFacts(
        groups=len(groups),
        responses=int(sizes.sum()),
        smallest=int(sizes.min()),
        middle=int(np.median(sizes)),
        largest=int(sizes.max()),
        repeated=report.duplicate_responses.count,
        scored=any(len(set(own)) > 1 for own in scores),
        prompts=np.array(prompts),
        pairs=np.array(pairs),
        answers=np.array(answers),
        notes=tuple(report.notes()),
    )
