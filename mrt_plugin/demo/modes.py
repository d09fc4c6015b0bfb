"""A dataset with known modes: each right answer to a prompt has a known probability, so distances to it are exact.

A mode is one of 6 answers in one of 3 wordings. Its probability depends on the prompt's weather and occasion, through
latent vectors drawn once per world, so one prompt carries information about the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
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
    """A prompt, its M right responses and their probabilities, which sum to 1: no other response is right."""

    id: str
    prompt: str
    modes: tuple[str, ...]
    probabilities: tuple[float, ...]


def mode_prompts(seed: int = 0, *, sharpness: float = 1.5) -> list[ModePrompt]:
    """Build all prompts of the world of this seed: every subject, weather and occasion.

    A mode's logit is the sum of an answer part and a wording part, each with the standard deviation `sharpness`.
    """
    random = np.random.default_rng(seed)
    size = 4
    weather = {word: random.standard_normal(size) for word in WEATHER}
    occasion = {word: random.standard_normal(size) for word in OCCASIONS}
    answer = {text: random.standard_normal(size) for texts in SUBJECTS.values() for text in texts}
    wording = random.standard_normal((len(WORDINGS), size))

    prompts = []
    for (subject, answers), sky, event in product(SUBJECTS.items(), WEATHER, OCCASIONS):
        # The dot product of a sum of two standard normal vectors with one has std sqrt(2 * size).
        pull = sharpness * (weather[sky] + occasion[event]) / np.sqrt(2 * size)
        logits = np.array([[pull @ answer[text] + pull @ style for style in wording] for text in answers])
        weights = np.exp(logits - logits.max()).ravel()
        modes = tuple(style.format(text) for text in answers for style in WORDINGS)
        chances = tuple((weights / weights.sum()).tolist())
        question = f"Suggest a {subject} for a {sky} {event}."
        prompts.append(ModePrompt(f"{subject}-{sky}-{event}", question, modes, chances))
    return prompts


def split_prompts(prompts: Sequence[ModePrompt], train: int, seed: int) -> tuple[list[ModePrompt], list[ModePrompt]]:
    """Draw `train` prompts without replacement. All others become held-out prompts."""
    order = np.random.default_rng([seed, 1]).permutation(len(prompts))
    return [prompts[index] for index in order[:train]], [prompts[index] for index in order[train:]]


def draw_groups(prompts: Sequence[ModePrompt], n: int, seed: int) -> list[dict[str, Any]]:
    """Draw one group per prompt: `n` responses drawn independently from the truth, including repeats."""
    groups = []
    for item in prompts:
        random = np.random.default_rng(list(digest(b"modes", str(seed).encode(), item.id.encode())))
        drawn = random.choice(len(item.modes), size=n, p=item.probabilities)
        groups.append({"id": item.id, "prompt": item.prompt, "responses": [item.modes[mode] for mode in drawn]})
    return groups
