"""Random sequences that begin alike in many ways, and the rule of a tree by definition."""

import random

import torch

from mrt_plugin.attention.plan import find_runs
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE, GroupRow, build_group_row
from mrt_plugin.layout.rows import Rows


def random_pairs(
    seed: int | str, *, depth: int = 4, fan_out: int = 3, longest: int = 6, most: int = 24, vocabulary: int = 96
) -> list[Pair]:
    """Pairs along the paths of a random tree of up to `depth` levels, some equal, some a beginning of others.

    What is trained differs between pairs of a path: some train what others only read.
    """
    rng = random.Random(f"pairs {seed}")
    pairs: list[Pair] = []

    def grow(path: list[int], level: int) -> None:
        least = 1 if path else 2  # the first token of a pair is not trained
        ids = [*path, *(rng.randrange(3, vocabulary) for _ in range(rng.randint(least, max(longest, least))))]
        last = level == depth or rng.random() < 0.15
        if len(ids) > 1 and (last or rng.random() < 0.2):
            for _ in range(rng.choice([1, 1, 1, 2])):
                first = rng.randint(1, len(ids) - 1)
                stop = rng.choice([len(ids), rng.randint(first + 1, len(ids))])
                pairs.append(Pair(ids, [first <= place < stop for place in range(len(ids))]))
        for _ in range(0 if last else rng.randint(1, fan_out)):
            if len(pairs) < most:
                grow(ids, level + 1)

    while not pairs:
        grow([], 1)
    rng.shuffle(pairs)
    return pairs[:most]


def random_forest(seed: int | str, *, groups: int = 3, aggregation: str = "token", **sizes: int) -> list[GroupRow]:
    """Groups that share beginnings with each other as well: the pairs of a random tree, dealt at random, weighted."""
    rng = random.Random(f"forest {seed}")
    pairs = random_pairs(seed, **sizes)
    count = min(groups, len(pairs))
    dealt = [pairs[place::count] for place in range(count)]
    return [
        build_group_row(part, aggregation, [rng.choice([0.5, 1.0, 3.0]) for _ in part])  # type: ignore[arg-type]
        for part in dealt
    ]


def nested_groups() -> list[GroupRow]:
    """Two documents under one system text, two prompts each, and responses with equal first words.

    Some responses are equal, one is the beginning of another, and some runs have one token.
    """
    rng = random.Random("nested groups")
    system, *documents = ([rng.randrange(3, 96) for _ in range(length)] for length in (11, 7, 5))
    groups = []
    for document in documents:
        for question in ([50], [51, 52, 53]):
            prompt = [*system, *document, *question]
            answers = [[60, 61, 62, 63, 64], [60, 61, 70], [60, 61, 70], [60, 61, 62], [71]]
            pairs = [Pair(prompt + ids, [False] * len(prompt) + [True] * len(ids)) for ids in answers]
            groups.append(build_group_row(pairs, "token", [1.0, 0.5, 2.0, 1.0, 3.0]))
    return groups


def deep_rows() -> list[list[GroupRow]]:
    """Three rows of five to seven levels: the nested groups and two forests, with sequences that begin others."""
    forests = [
        random_forest(seed, depth=6, fan_out=8, most=10, vocabulary=size) for seed, size in ((323, 96), (331, 5))
    ]
    return [nested_groups(), *forests]


def depths(rows: Rows) -> list[int]:
    """The levels of the tree above each run, itself included."""
    found: list[int] = []
    runs = find_runs(rows)
    for run in runs:
        found.append(1 if run.parent < 0 else found[run.parent] + 1)
    return found


def visible_by_definition(sequences: list[list[int]]) -> tuple[dict[tuple[int, ...], int], list[list[int]]]:
    """Every node of the tree, and for each sequence its nodes.

    A node is a sequence's beginning together with the token that follows it. After a sequence's last token comes the
    smallest token by which another sequence continues it, or nothing.
    """
    nodes: dict[tuple[int, ...], int] = {}
    paths = []
    for ids in sequences:
        following = [other[len(ids)] for other in sequences if other[: len(ids)] == ids and len(other) > len(ids)]
        longer = [*ids, min(following, default=-1)]
        keys = [tuple(longer[: place + 2]) for place in range(len(ids))]
        paths.append([nodes.setdefault(key, len(nodes)) for key in keys])
    return nodes, paths


def shifted(pair: Pair) -> torch.Tensor:
    """The pair's labels at the tokens that predict them, [1, L]."""
    labels = [token if trained else IGNORE for token, trained in zip(pair.input_ids, pair.trained, strict=True)]
    return torch.tensor([[*labels[1:], IGNORE]])
