"""Count the tokens that sharing saves in micro-batches: for system texts, documents, prompts, turns, responses."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from mrt_plugin.layout.group_row import GroupRow, sequences_of, shared_tokens
from mrt_plugin.layout.packing import fill_rows
from mrt_plugin.layout.tree import Tree, build_tree

LEVELS = ("system", "document", "prompt", "turns", "responses")


@dataclass(frozen=True)
class Sharing:
    """The tokens of micro-batches, and those that their trees save.

    A token of a tree that n sequences share saves n - 1 tokens. They count for the first of these levels that is true
    of the token:

    * `system`: all sequences of all the micro-batches begin with it, and these are of several groups;
    * `document`: sequences of several groups share it;
    * `turns`: the sequences that share it are of one response;
    * `prompt`: all responses of its group share it, before the first token that one of them trains;
    * `responses`: several responses share it.

    "All responses of its group" are those in the same row. A token counts as shared together with the token after it.
    """

    groups: int
    expanded: int
    """Tokens of the complete sequences."""
    saved: dict[str, int]
    """Tokens that the trees have less, by level."""

    @property
    def shared(self) -> int:
        """Tokens of the trees."""
        return self.expanded - sum(self.saved.values())

    @property
    def ratio(self) -> float:
        """Return expanded over shared tokens: the speed-up if tokens were the only cost."""
        return self.expanded / max(self.shared, 1)

    @property
    def shares(self) -> dict[str, float]:
        """Return the part of the expanded tokens that each level saves."""
        return {level: tokens / max(self.expanded, 1) for level, tokens in self.saved.items()}

    def describe(self) -> str:
        """Return the levels that save anything, largest first, with their part of the expanded tokens."""
        largest = sorted(self.shares.items(), key=lambda item: -item[1])
        return ", ".join(f"{level} {100 * share:.1f} %" for level, share in largest if share) or "nothing"


def measure_sharing(
    read: Callable[[int], GroupRow], batches: Sequence[Sequence[int]], *, row_length: int | None, packing: bool
) -> Sharing:
    """Count the tokens that sharing saves in micro-batches of groups.

    Args:
        read: returns a group by its number. Each is read twice.
        batches: for each micro-batch the numbers of its groups, as the run draws them.
        row_length, packing: those of the collator.

    Example:

    >>> from mrt_plugin.encoding.pair import Pair
    >>> from mrt_plugin.layout.group_row import build_group_row
    >>> prompts = ([1, 2, 3, 4], [1, 2, 5, 6])
    >>> rows = [build_group_row([Pair([*prompt, end], [False] * 4 + [True]) for end in (7, 8)]) for prompt in prompts]
    >>> found = measure_sharing(rows.__getitem__, [[0, 1]], row_length=100, packing=True)
    >>> found.expanded, found.shared, found.saved["system"], found.saved["prompt"]
    (20, 13, 3, 4)
    """
    numbers = list(chain.from_iterable(batches))
    system = _common_length(read(number) for number in numbers) if len(numbers) > 1 else 0
    expanded, saved = 0, np.zeros(len(LEVELS), dtype=np.int64)
    for batch in batches:
        members = [read(number) for number in batch]
        groups = [sequences_of(member) for member in members]
        expanded += sum(len(sequence.input_ids) for sequences in groups for sequence in sequences)
        prompts = np.array([min(int(sequence.trained.argmax()) for sequence in sequences) for sequences in groups])
        for row in fill_rows(groups, row_length, packing=packing):
            tree = build_tree([groups[group][place] for group, place in row])
            owners = [(group, members[group]["segment_responses"][place]) for group, place in row]
            saved += _count_levels(tree, owners, system=system, prompts=prompts)
    return Sharing(len(numbers), expanded, dict(zip(LEVELS, saved.tolist(), strict=True)))


def _common_length(groups: Iterable[GroupRow]) -> int:
    """Return the number of tokens that all sequences of all groups share."""
    every = (sequence.input_ids for group in groups for sequence in sequences_of(group))
    first = next(every)
    least = shortest = longest = len(first)
    for tokens in every:
        least = min(least, shared_tokens(first, tokens))
        shortest, longest = min(shortest, len(tokens)), max(longest, len(tokens))
    # After the last token of the shortest sequence, the others need not agree.
    return least if shortest == longest else min(least, shortest - 1)


def _count_levels(tree: Tree, of: Sequence[tuple[int, int]], *, system: int, prompts: np.ndarray) -> np.ndarray:
    """Return the tokens that a row's tree saves on each level.

    `of` holds the group and the response of each sequence, and `prompts` each group's untrained first tokens.
    """
    size = len(tree.input_ids)
    nodes = np.concatenate(tree.paths)
    lengths = [len(path) for path in tree.paths]
    owners = np.repeat(np.array(of), lengths, axis=0)  # the group and the response of each token of each sequence
    sequences = np.bincount(nodes, minlength=size)
    groups = _distinct(nodes, owners[:, 0], size)
    responses = _distinct(nodes, owners[:, 0] * (owners[:, 1].max() + 1) + owners[:, 1], size)
    group = np.zeros(size, dtype=np.int64)
    group[nodes] = owners[:, 0]  # of several, any
    in_row = np.bincount([group for group, _ in set(of)], minlength=len(prompts))
    rules = [
        tree.position_ids < system,
        groups > 1,
        responses == 1,
        # The last token of a prompt is shared if the responses have their first token in common.
        (responses == in_row[group]) & (tree.position_ids < prompts[group] - 1),
    ]
    names = ["system", "document", "turns", "prompt"]
    level = np.select(rules, [LEVELS.index(name) for name in names], LEVELS.index("responses"))
    return np.bincount(level, weights=sequences - 1, minlength=len(LEVELS)).astype(np.int64)


def _distinct(nodes: np.ndarray, labels: np.ndarray, size: int) -> np.ndarray:
    """Return how many different labels each node has."""
    both = np.unique(nodes * (labels.max() + 1) + labels)
    return np.bincount(both // (labels.max() + 1), minlength=size)
