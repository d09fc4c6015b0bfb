"""The small transformer that every run starts from: one per seed, which knows the answers but not their chances.

It has seen prompts of several lengths, each answered by any of its topic's six modes, all as often: so it knows which
answers there are and writes them without a slip, but not how likely each is. Fine-tuning has to teach it that.
"""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mrt_plugin.encoding import Encoder
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.models.tiny_model import pretrain
from recipes.claim.world import MODES, WORDS, World

LENGTHS = (16, 32, 64)
"""Prompt lengths of the base model's own training."""
LONGEST = 2048
"""Positions."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def build_encoder() -> Encoder:
    """The encoding that all runs use."""
    return Encoder(build_tokenizer(), prompt_format="plain")


def random_model(seed: int, *, layers: int = 1, hidden: int = 32) -> LlamaForCausalLM:
    """A randomly initialised Llama, small enough to be trained hundreds of times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(WORDS),
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=1,
                num_key_value_heads=1,
                max_position_embeddings=LONGEST,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=WORDS.index("<eos>"),
                pad_token_id=WORDS.index("<pad>"),
            )
        )


def base_model(seed: int, folder: Path, *, steps: int = 400, pairs: int = 32) -> LlamaForCausalLM:
    """The base model of a seed: read from `folder`, or trained and left there.

    Args:
        seed: of the weights and of what it is trained on.
        folder: where base models are kept.
        steps: of its training.
        pairs: per step.
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
    """What the base model learns from: prompts of another world, answered by any mode of their topic."""

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
