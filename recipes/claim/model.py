"""Build the base model of each seed: a small transformer that knows the answers, but not how likely they are.

It was trained on prompts of several lengths, answered equally often by each of their topic's six modes. So it writes
correct answers, but does not know how likely each is. Fine-tuning has to teach it that.
"""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from mrt_plugin.encoding import Encoder
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.models.tiny_model import build_llama, pretrain
from recipes.claim.world import MODES, WORDS, World

LENGTHS = (16, 32, 64)
"""Prompt lengths in the training of the base model."""
LONGEST = 2048
"""Number of positions of the model."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def build_encoder() -> Encoder:
    """Build the encoder that all runs use."""
    return Encoder(build_tokenizer(), prompt_format="plain")


def random_model(seed: int, *, layers: int = 1, hidden: int = 32) -> LlamaForCausalLM:
    """Build a randomly initialised Llama, small enough to be trained hundreds of times."""
    return build_llama(
        build_tokenizer(),
        seed,
        hidden=hidden,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=LONGEST,
    )


def base_model(seed: int, folder: Path, *, steps: int = 400, pairs: int = 32) -> LlamaForCausalLM:
    """Load the base model of a seed from `folder`, or train it and save it there.

    Args:
        seed: seed of the weights and of the training data.
        folder: folder of the base models.
        steps: training steps.
        pairs: pairs per step.
    """
    path = folder / f"base-{seed}.pt"
    model = random_model(seed)
    if not path.exists():
        pretrain(model, Chatter(seed, pairs), steps=steps, learning_rate=1e-2)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        torch.save(model.state_dict(), unfinished)
        unfinished.rename(path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


class Chatter:
    """Training data of the base model: prompts of another world, answered by any mode of their topic."""

    def __init__(self, seed: int, pairs: int) -> None:
        self.random = np.random.default_rng([seed, 2])
        self.encoder = build_encoder()
        self.pairs = pairs
        world = World(seed + 1_000_000)
        self.prompts = {length: world.prompts(256, length=length, stream=0) for length in LENGTHS}

    def __call__(self, step: int) -> list[Pair]:
        prompts = self.prompts[LENGTHS[step % len(LENGTHS)]]
        chosen = self.random.integers(len(prompts), size=self.pairs)
        modes = self.random.integers(MODES, size=self.pairs)
        return [
            self.encoder.encode(prompts[place].prompt, prompts[place].modes[mode])
            for place, mode in zip(chosen, modes, strict=True)
        ]
