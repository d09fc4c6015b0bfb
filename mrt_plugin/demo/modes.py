"""A grouped dataset with known modes: every prompt has several right answers, each with a known probability.

A prompt asks for a suggestion ("Suggest a drink for a rainy morning."). Each subject has its own answers, and an
answer can be worded in several ways; one answer in one wording is a mode, so a prompt has 6 x 3 of them. How likely
each is depends on the prompt: weather and occasion pull towards some answers and wordings, through latent vectors that
are drawn once per world. What one prompt teaches therefore says something about the others, as in real data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrt_plugin.groups.keys import digest

SUBJECTS = {
    "drink": ("black tea", "iced lemonade", "hot chocolate", "tomato juice", "strong coffee", "cold milk"),
    "meal": ("lentil soup", "green salad", "fried rice", "baked potatoes", "grilled fish", "cheese toast"),
    "book": (
        "a detective story",
        "a travel diary",
        "a poetry collection",
        "a history of Rome",
        "a spy novel",
        "an atlas",
    ),
    "film": ("a silent comedy", "a western", "a space opera", "a courtroom drama", "a nature film", "a musical"),
    "game": ("chess", "table tennis", "hide and seek", "dominoes", "a card game", "badminton"),
    "hobby": ("painting", "bird watching", "woodwork", "baking bread", "mending clothes", "playing the flute"),
    "gift": (
        "a woollen scarf",
        "a pocket knife",
        "a box of pears",
        "a potted fern",
        "a board of cheese",
        "a notebook",
    ),
    "trip": ("the museum", "the old harbour", "a forest path", "the street market", "the swimming lake", "the zoo"),
}
WEATHER = ("rainy", "sunny", "windy", "foggy", "snowy", "stormy", "frosty", "humid", "cloudy", "mild")
OCCASIONS = ("morning", "evening", "weekend", "birthday", "holiday", "afternoon", "Monday", "reunion")
WORDINGS = ("Try {}.", "How about {}?", "I would pick {}.")


@dataclass(frozen=True)
class ModePrompt:
    """A prompt, its M right responses, and how likely each is. The probabilities sum to 1: nothing else is right."""

    id: str
    prompt: str
    modes: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def entropy(self) -> float:
        """Entropy of the truth in nats: the negative log-likelihood per response that no model can beat on average."""
        p = np.array(self.probabilities)
        return float(-(p * np.log(p)).sum())


def mode_prompts(seed: int = 0, *, sharpness: float = 1.5) -> list[ModePrompt]:
    """All prompts of one world: every subject, weather and occasion.

    Args:
        seed: draws the latent vectors, and so the world.
        sharpness: standard deviation of a mode's logit in nats; 0 makes all modes equally likely.

    Example:

    >>> world = mode_prompts(seed=0)
    >>> len(world), world[0].prompt, world[0].modes[0]
    (640, 'Suggest a drink for a rainy morning.', 'Try black tea.')
    """
    random = np.random.default_rng(seed)
    size = 4
    weather = {word: random.standard_normal(size) for word in WEATHER}
    occasion = {word: random.standard_normal(size) for word in OCCASIONS}
    answer = {text: random.standard_normal(size) for texts in SUBJECTS.values() for text in texts}
    wording = random.standard_normal((len(WORDINGS), size))

    prompts = []
    for subject, answers in SUBJECTS.items():
        for sky, pull_of_weather in weather.items():
            for event, pull_of_occasion in occasion.items():
                # A sum of two standard normals dotted with one has standard deviation sqrt(2 * size).
                pull = sharpness * (pull_of_weather + pull_of_occasion) / np.sqrt(2 * size)
                logits = np.array([[pull @ answer[text] + pull @ style for style in wording] for text in answers])
                weights = np.exp(logits - logits.max()).ravel()
                prompts.append(
                    ModePrompt(
                        id=f"{subject}-{sky}-{event}",
                        prompt=f"Suggest a {subject} for a {sky} {event}.",
                        modes=tuple(style.format(text) for text in answers for style in WORDINGS),
                        probabilities=tuple((weights / weights.sum()).tolist()),
                    )
                )
    return prompts


def split_prompts(prompts: Sequence[ModePrompt], train: int, seed: int) -> tuple[list[ModePrompt], list[ModePrompt]]:
    """`train` prompts drawn without replacement, and all the others as held-out prompts."""
    order = np.random.default_rng([seed, 1]).permutation(len(prompts))
    return [prompts[index] for index in order[:train]], [prompts[index] for index in order[train:]]


def draw_groups(prompts: Sequence[ModePrompt], n: int, seed: int) -> list[dict[str, Any]]:
    """One group per prompt: `n` responses drawn independently from the truth, repeats included.

    A repeated response is information: how often a mode was drawn is all that a pool knows about its probability.

    Example:

    >>> group = draw_groups(mode_prompts()[:1], n=8, seed=0)[0]
    >>> sorted(group), len(group["responses"])
    (['id', 'prompt', 'responses'], 8)
    """
    groups = []
    for item in prompts:
        random = np.random.default_rng(list(digest(b"modes", str(seed).encode(), item.id.encode())))
        drawn = random.choice(len(item.modes), size=n, p=item.probabilities)
        groups.append({"id": item.id, "prompt": item.prompt, "responses": [item.modes[mode] for mode in drawn]})
    return groups
