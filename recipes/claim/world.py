"""A generated world: every prompt has a chosen length and six right answers of known probability.

A prompt has P tokens in random order. They mention its topic and three attributes, all equally often, with as many
filler words. An answer has R tokens: a word that names its mode, then one of three fixed endings. The topic determines
which six modes are right. Topic and attributes determine how likely each mode is. The content of a prompt does not
depend on P, so prompts of different lengths differ only in cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrt_plugin.groups.keys import digest

TOPICS, ATTRIBUTES, VALUES, MODES, ENDINGS, FILLERS = 6, 3, 8, 6, 3, 16
RESPONSE = 64
"""R, tokens of a response including its end token."""
POOL = 8
"""N, responses drawn per prompt."""
LATENT = 3
"""Dimension of the latent vectors of attributes and modes. Their product gives an attribute's effect on a mode."""

WORDS = [
    *("<pad>", "<eos>", ":"),
    *(f"t{topic}" for topic in range(TOPICS)),
    *(f"{'abc'[kind]}{value}" for kind in range(ATTRIBUTES) for value in range(VALUES)),
    *(f"f{number}" for number in range(FILLERS)),
    *(f"m{topic}.{mode}" for topic in range(TOPICS) for mode in range(MODES)),
    *(f"e{ending}.{step}" for ending in range(ENDINGS) for step in range(RESPONSE - 2)),
]
"""The vocabulary, with one token per word."""


@dataclass(frozen=True)
class Subject:
    """Subject of a prompt. It determines the true distribution of answers."""

    topic: int
    values: tuple[int, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Return the four words that a prompt about this subject mentions."""
        return (f"t{self.topic}", *(f"{'abc'[kind]}{value}" for kind, value in enumerate(self.values)))


@dataclass(frozen=True)
class Prompt:
    """A prompt with its right answers. It is a `mrt_plugin.evaluation.truth.KnownTruth`."""

    id: str
    prompt: str
    modes: tuple[str, ...]
    probabilities: tuple[float, ...]


class World:
    """The right answers and their probabilities for every subject, all drawn from `seed`.

    Example:

    >>> world = World(seed=0)
    >>> prompt = world.prompts(1, length=64, stream=0)[0]
    >>> len(prompt.prompt.split()), len(prompt.modes), round(sum(prompt.probabilities), 9)
    (64, 6, 1.0)
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        random = np.random.default_rng([seed, 1])
        self.taste = random.standard_normal((TOPICS, MODES))
        self.pull = random.standard_normal((ATTRIBUTES, VALUES, LATENT))
        self.answer = random.standard_normal((TOPICS, MODES, LATENT))
        subjects = [(topic, value) for topic in range(TOPICS) for value in range(VALUES**ATTRIBUTES)]
        # Streams are slices of one shuffled list, so no subject is in two streams.
        self._order = [subjects[place] for place in random.permutation(len(subjects))]

    def probabilities(self, subject: Subject) -> np.ndarray:
        """Return the probabilities, [MODES].

        The logits have a standard deviation of 1 from the topic and of 1 from the attributes.
        """
        pull = sum(self.pull[kind, value] for kind, value in enumerate(subject.values))
        logits = self.taste[subject.topic] + self.answer[subject.topic] @ pull / np.sqrt(ATTRIBUTES * LATENT)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def prompts(self, count: int, *, length: int, stream: int) -> list[Prompt]:
        """Build prompts of `length` tokens about different subjects. The first n of a longer list equal the list of n.

        Args:
            stream: 0 or 1; two streams share no subject.

        Raises:
            ValueError: if there are too few subjects.
        """
        half = len(self._order) // 2
        if count > half:
            raise ValueError(f"{count} prompts of one stream: the world has {half} subjects for it.")
        chosen = self._order[stream * half : stream * half + count]
        return [self._prompt(topic, number, length) for topic, number in chosen]

    def _prompt(self, topic: int, number: int, length: int) -> Prompt:
        subject = Subject(topic, tuple(number // VALUES**kind % VALUES for kind in range(ATTRIBUTES)))
        name = "-".join(subject.words)
        random = np.random.default_rng(list(digest(b"claim prompt", str(self.seed).encode(), name.encode())))
        mentions = [subject.words[place % len(subject.words)] for place in range(length // 2)]
        words = mentions + [f"f{number}" for number in random.integers(FILLERS, size=length - 1 - len(mentions))]
        random.shuffle(words)
        return Prompt(
            id=name,
            prompt=" ".join(words) + " :",
            modes=tuple(answer_text(topic, mode) for mode in range(MODES)),
            probabilities=tuple(self.probabilities(subject).tolist()),
        )


def answer_text(topic: int, mode: int) -> str:
    """Return the R - 1 words of an answer; the end token follows.

    Example:

    >>> answer_text(2, 4)[:15], len(answer_text(2, 4).split())
    (' m2.4 e1.0 e1.1', 63)
    """
    return f" m{topic}.{mode} " + " ".join(f"e{mode % ENDINGS}.{step}" for step in range(RESPONSE - 2))


def draw_pool(world: World, prompts: Sequence[Prompt], n: int = POOL) -> list[dict[str, Any]]:
    """Build one group per prompt, with `n` answers drawn independently from the truth, including repeats."""
    groups = []
    for item in prompts:
        random = np.random.default_rng(list(digest(b"claim pool", str(world.seed).encode(), item.id.encode())))
        drawn = random.choice(len(item.modes), size=n, p=item.probabilities)
        groups.append({"id": item.id, "prompt": item.prompt, "responses": [item.modes[mode] for mode in drawn]})
    return groups
