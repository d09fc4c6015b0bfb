"""Mixing datasets by proportions, with capped upsampling."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, ClassVar

from datasets import Dataset, concatenate_datasets

from mrt_plugin.curation.rule import PoolRule, PoolVerdict, Tools
from mrt_plugin.curation.sample import shuffled
from mrt_plugin.groups.rows import repeat_groups, with_ids

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MixPart:
    """What becomes of one dataset in a mix."""

    name: str
    have: int
    """Groups it has."""
    take: int
    """Groups it gives, copies included."""

    @property
    def repeats(self) -> float:
        """How often a group of it occurs, on average."""
        return self.take / self.have

    def as_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def check_proportions(names: Iterable[str], proportions: Mapping[str, float], max_repeats: int) -> None:
    """Raise ValueError unless each dataset has a proportion, and they can be shares."""
    if set(names) != set(proportions):
        raise ValueError(
            f"proportions are given for {', '.join(proportions)}, and the datasets are {', '.join(names)}: give one "
            "for each (0 leaves a dataset out)."
        )
    bad = [f"{name}={value!r}" for name, value in proportions.items() if not 0 <= value < math.inf]
    if bad or not sum(proportions.values()) > 0:
        raise ValueError(f"proportions must be at least 0 and not all 0, not {', '.join(bad) or 'all 0'}.")
    if max_repeats < 1:
        raise ValueError(f"max_repeats={max_repeats} must be at least 1.")


def plan_mix(
    sizes: Mapping[str, int], proportions: Mapping[str, float], *, total: int | None = None, max_repeats: int = 4
) -> list[MixPart]:
    """How many groups each dataset gives.

    Args:
        sizes: the groups that each dataset has.
        proportions: the share of each in the mix; they need not sum to 1. A dataset that is not named is an error.
        total: groups of the mix. By default as many as can be had without repeating a group more than `max_repeats`
            times, but no more than all datasets have together.
        max_repeats: how often a group may occur. Data repeated up to four times is nearly as good as new data, and
            beyond that less and less so (Muennighoff et al., arXiv 2305.16264, section 6).

    Raises:
        ValueError: naming the dataset and the remedy, if a proportion cannot be met.

    Example:

    >>> [(part.name, part.take) for part in plan_mix({"chat": 900, "code": 100}, {"chat": 1, "code": 1})]
    [('chat', 400), ('code', 400)]
    """
    check_proportions(sizes, proportions, max_repeats)
    whole = sum(Fraction(value) for value in proportions.values())
    shares = {name: Fraction(value) / whole for name, value in proportions.items() if value > 0}
    most = min(Fraction(sizes[name] * max_repeats) / share for name, share in shares.items())
    if total is None:
        total = min(int(most), sum(sizes[name] for name in shares))
    takes = _apportion(shares, total)
    for name, take in takes.items():
        if take > sizes[name] * max_repeats:
            raise ValueError(
                f"a mix of {total:,} groups with {float(shares[name]):.1%} from {name} needs {take:,} of its groups; "
                f"it has {sizes[name]:,}, and each may occur at most {max_repeats} times. Lower the total to "
                f"{int(most):,}, lower the proportion of {name}, raise max_repeats, or add data."
            )
    empty = next((name for name, take in takes.items() if not take), None)
    if empty is not None:
        raise ValueError(
            f"a mix of {total:,} groups has room for none from {empty}: raise the total, or leave it out."
        )
    return [MixPart(name, sizes[name], takes[name]) for name in sizes if name in takes]


def _apportion(shares: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total`: the largest remainders get one more, and in a tie the first name."""
    takes = {name: int(share * total) for name, share in shares.items()}
    remainders = sorted(shares, key=lambda name: (takes[name] - shares[name] * total, name))
    for name in remainders[: total - sum(takes.values())]:
        takes[name] += 1
    return takes


class Mix(PoolRule):
    """The rule behind `mrt select --proportion`: a mix of the datasets that the groups came from. It is applied after
    all other rules, so that the proportions are those of the result.
    """

    name: ClassVar[str] = "mix"

    owners: dict[str, str]
    """The dataset that each group came from, by the group's id."""
    proportions: dict[str, float]
    total: int | None = None
    max_repeats: int = 4

    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolVerdict:
        """Drop what is not drawn, and repeat what is drawn again."""
        ids = groups["id"][:]
        owners = [self.owners[name] for name in ids]
        sizes = dict.fromkeys(self.owners.values(), 0) | Counter(owners)
        parts = plan_mix(sizes, self.proportions, total=self.total, max_repeats=self.max_repeats)
        taken = Counter(mix_positions(ids, owners, parts, tools.seed))
        return PoolVerdict(
            dropped={place: "not drawn" for place in range(len(ids)) if place not in taken},
            repeated={place: times - 1 for place, times in taken.items() if times > 1},
        )


def mix_positions(ids: Sequence[str], owners: Sequence[str], parts: Sequence[MixPart], seed: int) -> list[int]:
    """Which groups a mix takes, by position and rising, copies next to each other.

    Args:
        ids: of all groups.
        owners: the dataset of each.
        parts: how many each dataset gives.
        seed: draws them. The draw depends on ids alone, not on the order of the groups.
    """
    places: dict[str, list[int]] = {part.name: [] for part in parts}
    for place, owner in enumerate(owners):
        if owner in places:
            places[owner].append(place)
    taken: list[int] = []
    for part in parts:
        own = places[part.name]
        rounds, rest = divmod(part.take, len(own))
        taken += own * rounds + [own[index] for index in shuffled([ids[place] for place in own], seed)[:rest]]
    return sorted(taken)


def combine(datasets: Mapping[str, Dataset]) -> tuple[Dataset, list[str]]:
    """Several datasets of groups one after the other, and the name of the one that each group is from.

    Columns that not all have are left out, with a warning. If two groups have the same id, all ids get their dataset's
    name in front.

    Raises:
        ValueError: if prompts or responses are strings in one and messages in another.
    """
    first = next(iter(datasets))
    if len(datasets) == 1:
        return datasets[first], [first] * len(datasets[first])
    shared = [
        name for name in datasets[first].column_names if all(name in one.column_names for one in datasets.values())
    ]
    parts = []
    for name, one in datasets.items():
        for column in ("prompt", "responses"):
            if one.features[column] != datasets[first].features[column]:
                raise ValueError(
                    f"{name} and {first} cannot be put together: their column {column} has strings in one and "
                    "messages in the other. Convert one of them."
                )
        left_out = [column for column in one.column_names if column not in shared]
        if left_out:
            logger.warning("%s: %s left out, since not all datasets have it.", name, ", ".join(left_out))
        parts.append(one.select_columns(shared))
    together = concatenate_datasets(parts)
    owners = [name for name, one in datasets.items() for _ in range(len(one))]
    ids = together["id"][:]
    if len(set(ids)) < len(ids):
        logger.warning("Some datasets share ids: all ids get their dataset's name in front.")
        together = with_ids(together, [f"{owner}/{name}" for owner, name in zip(owners, ids, strict=True)])
    return together, owners


def mix(
    datasets: Mapping[str, Dataset],
    proportions: Mapping[str, float],
    *,
    total: int | None = None,
    max_repeats: int = 4,
    seed: int = 0,
) -> tuple[Dataset, list[MixPart]]:
    """Put datasets together by proportions of groups, drawing from large ones and repeating small ones.

    The copies of a group have ids of their own (`#2`, `#3`, ...), so that a random selector keeps other responses in
    each. `total`, `max_repeats` and the errors are those of `plan_mix`.

    Args:
        datasets: groups by name.
        proportions: a share for each name.
        seed: draws the groups that are taken. The draw depends on ids alone, not on the order of rows.

    Returns:
        The mix, in the order of the datasets, and what each gave.

    Example:

    ```python
    mixed, parts = mix({"chat": chat, "code": code}, {"chat": 0.7, "code": 0.3}, seed=7)
    ```
    """
    parts = plan_mix(
        {name: len(one) for name, one in datasets.items()}, proportions, total=total, max_repeats=max_repeats
    )
    together, owners = combine(datasets)
    return repeat_groups(together, mix_positions(together["id"][:], owners, parts, seed)), parts
