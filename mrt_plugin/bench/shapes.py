"""The shapes of a benchmark, and groups of random tokens with these shapes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.groups.keys import digest
from mrt_plugin.layout.group_row import build_group_row, sequences_of
from mrt_plugin.layout.tree import build_tree

SPREAD = 0.5
"""Standard deviation of the logarithm of mixed lengths: nine in ten are within a factor of 2.3 of the median."""

NOTATIONS = "give P,R,K or S,P,R,K or TxU,H,A in whole numbers, such as 512,64,8 or 1024,64,64,1 or 20x64,128,16"

Draw = Callable[[int, int], list[int]]
"""Draws random tokens: a mean number of them, and at least so many."""


@dataclass(frozen=True)
class Shape:
    """Groups of one prompt with K responses of R tokens, which are all trained.

    A prompt has S tokens in common with all other prompts (a system text), then P tokens of its own.
    """

    prompt: int
    response: int
    k: int
    system: int = 0

    @property
    def pairs(self) -> int:
        """The number of pairs of a group."""
        return self.k

    @property
    def lengths(self) -> dict[str, int]:
        """What the shape sets, by its symbol."""
        system = {"S": self.system} if self.system else {}
        return {**system, "P": self.prompt, "R": self.response, "K": self.k}

    def __str__(self) -> str:
        return ",".join(map(str, self.lengths.values()))

    def draw(self, draw: Draw, system: list[int]) -> list[Pair]:
        prompt = [*system, *draw(self.prompt, 1 if system else 2)]
        return [_pair(prompt, draw(self.response, 1)) for _ in range(self.k)]


@dataclass(frozen=True)
class TurnShape:
    """Conversations of T turns: U tokens of the user, then H tokens of thinking and A tokens of the answer.

    As at inference, the contexts of later turns have no thinking. Each turn is a sequence of its own, which trains
    the thinking and the answer: a pair.
    """

    turns: int
    user: int
    thinking: int
    answer: int
    system = 0

    @property
    def pairs(self) -> int:
        """The number of pairs of a group: one for each turn."""
        return self.turns

    @property
    def lengths(self) -> dict[str, int]:
        """What the shape sets, by its symbol."""
        return {"T": self.turns, "U": self.user, "H": self.thinking, "A": self.answer}

    def __str__(self) -> str:
        return f"{self.turns}x{self.user},{self.thinking},{self.answer}"

    def draw(self, draw: Draw, system: list[int]) -> list[Pair]:
        context, pairs = list(system), []
        for _ in range(self.turns):
            context += draw(self.user, 1 if context else 2)
            thinking, answer = draw(self.thinking, 0), draw(self.answer, 1)
            pairs.append(_pair(context, thinking + answer))
            context += answer
        return pairs


AnyShape = Shape | TurnShape


def _pair(prompt: list[int], response: list[int]) -> Pair:
    return Pair(prompt + response, [False] * len(prompt) + [True] * len(response))


def parse_shape(text: str) -> AnyShape:
    """Return the shape in `text`.

    `P,R,K` are prompt tokens, response tokens and responses. `S,P,R,K` has S system tokens before each prompt.
    `TxU,H,A` are T turns of U user tokens, H thinking tokens and A answer tokens.

    Raises:
        ValueError: for a text in no such form, or a number that is too small.

    Example:

    >>> parse_shape("1024,64,32,1")
    Shape(prompt=64, response=32, k=1, system=1024)
    >>> parse_shape("20x64,128,16")
    TurnShape(turns=20, user=64, thinking=128, answer=16)
    """
    turns, separator, rest = text.rpartition("x")
    try:
        numbers = [int(part) for part in rest.split(",")]
        if separator:
            user, thinking, answer = numbers
            shape: AnyShape = TurnShape(int(turns), user, thinking, answer)
        else:
            *system, prompt, response, k = numbers
            shape = Shape(prompt, response, k, *system)
    except (ValueError, TypeError):
        raise ValueError(f"{text!r} is no shape: {NOTATIONS}.") from None
    least = {"S": 1, "P": 1 if shape.system else 2, "U": 2, "H": 0}
    for symbol, number in shape.lengths.items():
        if number < least.get(symbol, 1):
            raise ValueError(f"{text!r} is no shape: {symbol} must be at least {least.get(symbol, 1)}.")
    return shape


DEFAULT_SHAPES = tuple(map(parse_shape, ("1024,64,8", "512,64,8", "512,128,8", "128,128,4", "64,256,4", "256,128,1")))


def draw_groups(
    shape: AnyShape, count: int, vocabulary: int, *, mixed: bool = False, seed: int = 0
) -> list[list[Pair]]:
    """Draw groups of random tokens in [3, vocabulary), with equal or (`mixed`) log-normal lengths, as in real data.

    All groups have the same system text, of the shape's length.
    """

    def rng_of(part: str) -> np.random.Generator:
        key = digest(b"bench", str(seed).encode(), str(shape).encode(), part.encode())
        return np.random.default_rng(int.from_bytes(key, "little"))

    def tokens(rng: np.random.Generator, length: int) -> list[int]:
        return [int(token) for token in rng.integers(3, vocabulary, length)]

    system, groups = tokens(rng_of("system"), shape.system), []
    for number in range(count):
        rng = rng_of(str(number))

        def draw(mean: int, least: int, rng: np.random.Generator = rng) -> list[int]:
            if not mixed or mean == 0:
                return tokens(rng, mean)
            return tokens(rng, max(least, round(rng.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD))))

        groups.append(shape.draw(draw, system))
    return groups


def token_ratio(groups: Sequence[Sequence[Pair]], groups_per_step: int) -> float:
    """Return the ideal speed-up: the tokens of all pairs, over those of the trees of each step's groups."""
    expanded = shared = 0
    for start in range(0, len(groups), groups_per_step):
        rows = [build_group_row(pairs) for pairs in groups[start : start + groups_per_step]]
        sequences = [sequence for row in rows for sequence in sequences_of(row)]
        expanded += sum(len(sequence.input_ids) for sequence in sequences)
        shared += len(build_tree(sequences).input_ids)
    return expanded / shared
