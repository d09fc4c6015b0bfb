"""The demo's world with scores: prompts, pools of scored draws, a pretrained base model, and exact measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, LlamaForCausalLM

from mrt_plugin.demo.modes import ModePrompt, draw_groups, mode_prompts, split_prompts
from mrt_plugin.demo.run import DemoSettings, make_model
from mrt_plugin.encoding import Encoder
from mrt_plugin.evaluation.truth import distance_of
from mrt_plugin.models.log_likelihood import Model, log_likelihoods

POOL = 8
"""N, responses drawn per prompt."""
HELD_OUT = 160
"""Prompts that no run trains on. All measures are means over them."""
TRAIN = 480
"""Prompts that a run may train on. The first n of them are those of a run on n prompts."""


@dataclass(frozen=True)
class Measures:
    """What a model gives its own samples, compared with the truth: exact means over the held-out prompts."""

    kl: float
    """KL(truth || model), nats per response."""
    coverage: float
    """The true probability of the modes that the model gives at least half of theirs."""
    nll: float
    """Negative log-likelihood of responses drawn from the truth, its expected value, nats per response."""
    elsewhere: float
    """The model's probability of a response that is not a mode."""
    reward: float
    """The expected score of a response that the model draws. What is not a mode scores 0."""
    entropy: float
    """Of the model's distribution over the modes, renormalised, nats."""


@dataclass(frozen=True)
class Data:
    """A seed's prompts: pools of the training prompts with scores, and the held-out prompts with their truth."""

    groups: list[dict[str, Any]]
    held_out: list[ModePrompt]


def score(prompt: ModePrompt, response: str) -> float:
    """Return a response's score in (0, 1]: its true probability, relative to the most likely response.

    Example:

    >>> prompt = ModePrompt("a", "Name a fruit.", ("Pear.", "Fig."), (0.8, 0.2))
    >>> score(prompt, "Pear."), score(prompt, "Fig.")
    (1.0, 0.25)
    """
    return prompt.probabilities[prompt.modes.index(response)] / max(prompt.probabilities)


@lru_cache(maxsize=1)
def draw_data(seed: int) -> Data:
    """Draw the data of a seed. They do not depend on the run."""
    train, held_out = split_prompts(mode_prompts(seed), TRAIN, seed)
    groups = draw_groups(train, POOL, seed)
    for group, prompt in zip(groups, train, strict=True):
        group["scores"] = [score(prompt, response) for response in group["responses"]]
    return Data(groups, held_out[:HELD_OUT])


def base_folder(seed: int, bases: Path) -> Path:
    """Return the folder of the seed's base model, and pretrain it if it is missing."""
    folder = bases / str(seed)
    if not (folder / "model" / "model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make_model(folder, DemoSettings(seed=seed), lambda step: None)
    return folder / "model"


def measure(model: Model, tokenizer: Any, held_out: Sequence[ModePrompt]) -> Measures:
    """Score every mode of every held-out prompt, and compare with the truth."""
    pairs = [pair for prompt in held_out for pair in Encoder(tokenizer).encode_group(prompt.prompt, prompt.modes)]
    found = log_likelihoods(model, pairs)
    scores = np.split(found, np.cumsum([len(prompt.modes) for prompt in held_out])[:-1])
    distance = distance_of(scores, held_out)
    rows = []
    for log_q, prompt in zip(scores, held_out, strict=True):
        p, q = np.array(prompt.probabilities), np.exp(log_q)
        share = q / q.sum()
        rows.append((-(p * log_q).sum(), (q * p).sum() / p.max(), -(share * np.log(share)).sum()))
    nll, reward, entropy = np.mean(rows, axis=0).tolist()
    return Measures(distance.kl, distance.coverage, nll, distance.elsewhere, reward, entropy)


def load_base(folder: Path) -> tuple[LlamaForCausalLM, Any]:
    """Load the base model and its tokenizer."""
    return LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
