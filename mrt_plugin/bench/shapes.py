"""The shapes of a benchmark, and groups of random tokens with these shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.groups.keys import digest

SPREAD = 0.5
"""Standard deviation of the logarithm of mixed lengths: nine in ten are within a factor of 2.3 of the median."""


@dataclass(frozen=True)
class Shape:
    """Groups of one prompt of P tokens with K responses of R tokens, which are all trained."""

    prompt: int
    response: int
    k: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        try:
            prompt, response, k = (int(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"{text!r} is no shape: give P,R,K as three whole numbers, such as 512,64,8.") from None
        if prompt < 2 or response < 1 or k < 1:
            raise ValueError(f"{text!r} is no shape: P must be at least 2, R and K at least 1.")
        return cls(prompt, response, k)

    def __str__(self) -> str:
        return f"{self.prompt},{self.response},{self.k}"


DEFAULT_SHAPES = tuple(map(Shape.parse, ("1024,64,8", "512,64,8", "512,128,8", "128,128,4", "64,256,4", "256,128,1")))


def draw_groups(shape: Shape, count: int, vocabulary: int, *, mixed: bool = False, seed: int = 0) -> list[list[Pair]]:
    """Draw groups of random tokens in [3, vocabulary), with equal or (`mixed`) log-normal lengths, as in real data."""
    groups = []
    for number in range(count):
        key = digest(b"bench", str(seed).encode(), str(shape).encode(), str(number).encode())
        rng = np.random.default_rng(int.from_bytes(key, "little"))
        prompt, *responses = [
            _tokens(rng, mean, least, vocabulary, mixed)
            for mean, least in ((shape.prompt, 2), *[(shape.response, 1)] * shape.k)
        ]
        prompt_mask = [False] * len(prompt)
        groups.append([Pair(prompt + response, prompt_mask + [True] * len(response)) for response in responses])
    return groups


def _tokens(rng: np.random.Generator, mean: int, least: int, vocabulary: int, mixed: bool) -> list[int]:
    length = max(least, round(rng.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD))) if mixed else mean
    return [int(token) for token in rng.integers(3, vocabulary, length)]


def token_ratio(groups: Sequence[Sequence[Pair]]) -> float:
    """Return the ideal speed-up: tokens with the prompt copied for each response, over tokens with the prompt once."""
    expanded = shared = 0
    for pairs in groups:
        prompt = list(pairs[0].trained).index(True)
        expanded += sum(len(pair.input_ids) for pair in pairs)
        shared += prompt - 1 + sum(len(pair.input_ids) - prompt + 1 for pair in pairs)
    return expanded / shared
