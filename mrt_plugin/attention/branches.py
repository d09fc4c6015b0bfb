"""The runs of trees as the `fork` backend computes them: which of them go through the model together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from mrt_plugin.attention.plan import find_runs
from mrt_plugin.layout.rows import Rows

SHORTEST = 2
"""The fewest tokens of an inner run that is forked. Shorter ones are computed again in each child: with a single
token, a model takes its path for one cached step."""

FORWARD = 128
"""What one more forward costs, in tokens: two batches become one if that adds fewer than this many.

On a CPU, 8 and 16 groups with prompts of 128 and 64 tokens were fastest between 64 and 256."""


@dataclass(frozen=True)
class Branch:
    """A run of a tree with what continues it."""

    tokens: list[int]
    """Indices in the flattened rows."""
    repeated: int
    """Number of first tokens that another branch computes as well. Their NLL is taken from that branch."""
    position: int
    """Position of the first token."""
    children: "list[Branch]"

    @property
    def deepest(self) -> int:
        """Tokens of the longest sequence of the tree up to here."""
        longest, waiting = 0, [self]
        while waiting:
            branch = waiting.pop()
            longest = max(longest, branch.position + len(branch.tokens))
            waiting += branch.children
        return longest


@dataclass(frozen=True)
class Placed:
    """A branch, and the row of a cache that it continues."""

    branch: Branch
    row: int


def forest(rows: Rows) -> list[Branch]:
    """Return the trees of all rows. Inner runs of fewer than `SHORTEST` tokens are copied into their children."""
    runs, width = find_runs(rows), rows.input_ids.shape[1]
    inner = {run.parent for run in runs}
    roots: list[Branch] = []
    above: dict[int, Branch | None] = {-1: None}  # the branch that a run's children continue
    copied: dict[int, list[int]] = {-1: []}  # the tokens that they repeat
    taken: set[int] = set()  # those of them that a branch has already
    for number, run in enumerate(runs):
        parent, first = above[run.parent], copied[run.parent]
        tokens = [*first, *range(run.row * width + run.start, run.row * width + run.stop)]
        if number in inner and len(tokens) < SHORTEST:
            above[number], copied[number] = parent, tokens
            continue
        repeated = sum(index in taken for index in first)
        taken.update(first)
        branch = Branch(tokens, repeated, run.position - len(first), [])
        (roots if parent is None else parent.children).append(branch)
        above[number], copied[number] = branch, []
    return roots


def batch_leaves(leaves: Sequence[Placed]) -> list[list[Placed]]:
    """Divide branches without children into batches that are padded to their longest."""
    ordered = sorted(leaves, key=lambda placed: len(placed.branch.tokens))
    lengths = [len(placed.branch.tokens) for placed in ordered]
    return _divide(ordered, lambda start, stop: (stop - start) * lengths[stop - 1])


def batch_inner(inner: Sequence[Placed]) -> list[list[Placed]]:
    """Divide branches with children into batches of equal length, for which longer branches are cut.

    Padding would change the state of a layer. So the children of a longer branch compute what is cut off, each of
    them again.
    """
    ordered = sorted(inner, key=lambda placed: len(placed.branch.tokens))
    lengths = [len(placed.branch.tokens) for placed in ordered]
    again = [len(placed.branch.children) - 1 for placed in ordered]
    weights = list(accumulate(again, initial=0))
    weighted = list(accumulate((count * length for count, length in zip(again, lengths, strict=True)), initial=0))

    def repeated(start: int, stop: int) -> int:
        """Return the tokens computed again if all branches from `start` to `stop` have the length of the first."""
        return weighted[stop] - weighted[start] - lengths[start] * (weights[stop] - weights[start])

    batches = _divide(ordered, repeated)
    return [[replace(p, branch=_cut(p.branch, len(batch[0].branch.tokens))) for p in batch] for batch in batches]


def _cut(branch: Branch, length: int) -> Branch:
    """Return the branch with its first `length` tokens. Its children get the others."""
    rest = branch.tokens[length:]
    if not rest:
        return branch
    children = [
        Branch(
            rest + child.tokens,
            # The first child computes the NLL of the rest, but for what the branch repeats. It repeats nothing itself.
            len(rest) + child.repeated if number else max(branch.repeated - length, 0),
            child.position - len(rest),
            child.children,
        )
        for number, child in enumerate(branch.children)
    ]
    kept = min(branch.repeated, length)
    return replace(branch, tokens=branch.tokens[:length], repeated=kept, children=children)


def _divide(ordered: list[Placed], cost: Callable[[int, int], int]) -> list[list[Placed]]:
    """Divide a list into parts of least cost: `cost(start, stop)` tokens of a part, and `FORWARD` for each."""
    best = [0]
    starts = []
    for stop in range(1, len(ordered) + 1):
        total, start = min((best[start] + cost(start, stop) + FORWARD, start) for start in range(stop))
        best.append(total)
        starts.append(start)
    parts = []
    stop = len(ordered)
    while stop:
        start = starts[stop - 1]
        parts.append(ordered[start:stop])
        stop = start
    return parts[::-1]
