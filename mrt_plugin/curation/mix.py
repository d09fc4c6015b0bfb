"""Mix datasets by proportions, and draw a number of groups; both repeat small datasets a limited number of times."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets
from pydantic import Field

from mrt_plugin.curation.rule import PoolDecisions, PoolRule, Tools
from mrt_plugin.groups.batches import batch_size
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.rows import repeat_groups, with_column

TEXT = {"prompt": Value("string"), "responses": List(Value("string"))}
"""The columns that hold text or messages, and their type if it is text."""

logger = logging.getLogger(__name__)


def check_proportions(names: Iterable[str], proportions: Mapping[str, float], max_repeats: int) -> None:
    """Raise ValueError unless each dataset has a valid proportion."""
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
) -> dict[str, int]:
    """Return the number of groups from each dataset, copies included. By default the `total` is as large as possible.

    Data repeated up to four times is nearly as good as new data (Muennighoff et al., arXiv 2305.16264, section 6).
    """
    check_proportions(sizes, proportions, max_repeats)
    exact = {name: Fraction(str(value)) for name, value in proportions.items()}  # 0.2 is a fifth, as it is written
    shares = {name: value / sum(exact.values()) for name, value in exact.items() if value > 0}
    most = min(Fraction(sizes[name] * max_repeats) / share for name, share in shares.items())
    if total is None:
        total = min(int(most), sum(sizes[name] for name in shares))
    # Round by the largest remainders; in a tie by the first name.
    takes = {name: int(share * total) for name, share in shares.items()}
    remainders = sorted(shares, key=lambda name: (takes[name] - shares[name] * total, name))
    for name in remainders[: total - sum(takes.values())]:
        takes[name] += 1
    for name, take in takes.items():
        if take > sizes[name] * max_repeats:
            raise ValueError(
                f"a mix of {total:,} groups with {float(shares[name]):.1%} from {name} needs {take:,} of its groups; "
                f"it has {sizes[name]:,}, and each may occur at most {max_repeats} times. Lower the total to "
                f"{int(most):,}, lower the proportion of {name}, raise max_repeats, or add data."
            )
        if not take:
            raise ValueError(
                f"a mix of {total:,} groups has room for none from {name}: raise the total, or leave it out."
            )
    return takes


class Mix(PoolRule):
    """The rule of `mrt select --proportion`. `owners` has the dataset of each group, by the group's id."""

    owners: dict[str, str]
    proportions: dict[str, float]
    total: int | None = None
    max_repeats: int = 4

    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolDecisions:
        ids = groups["id"][:]
        owners = [self.owners[name] for name in ids]
        sizes = dict.fromkeys(self.owners.values(), 0) | Counter(owners)
        takes = plan_mix(sizes, self.proportions, total=self.total, max_repeats=self.max_repeats)
        return _decide(ids, owners, takes, tools.seed)


def draw_mix(ids: Sequence[str], owners: Sequence[str], takes: Mapping[str, int], seed: int) -> list[int]:
    """Return the positions of the groups of a mix, ascending. The draw does not depend on the order of the groups."""
    taken: list[int] = []
    for name, take in takes.items():
        own = [place for place, owner in enumerate(owners) if owner == name]
        rounds, rest = divmod(take, len(own))
        shuffled = sorted(own, key=lambda place: digest(b"sample", str(seed).encode(), ids[place].encode()))
        taken += own * rounds + shuffled[:rest]
    return sorted(taken)


def _decide(ids: Sequence[str], owners: Sequence[str], takes: Mapping[str, int], seed: int) -> PoolDecisions:
    taken = Counter(draw_mix(ids, owners, takes, seed))
    return PoolDecisions(
        dropped={place: "not drawn" for place in range(len(ids)) if place not in taken},
        repeated={place: times - 1 for place, times in taken.items()},
    )


def combine(datasets: Mapping[str, Dataset]) -> tuple[Dataset, list[str]]:
    """Concatenate the columns that all datasets have. Return the result, and the dataset's name for each group.

    If some datasets have strings for prompts or responses and others messages, the strings become messages.
    """
    datasets = _in_one_form(datasets)
    first = next(iter(datasets))
    if len(datasets) == 1:
        return datasets[first], [first] * len(datasets[first])
    shared = [name for name in datasets[first].column_names if all(name in one.features for one in datasets.values())]
    parts = []
    for name, one in datasets.items():
        for column in TEXT:
            if one.features[column] != datasets[first].features[column]:
                what = f"the messages of their column {column} are stored with different fields"
                raise ValueError(f"{name} and {first} cannot be put together: {what}. Read both with load_groups.")
        left_out = [column for column in one.column_names if column not in shared]
        if left_out:
            logger.warning("%s: %s left out, since not all datasets have it.", name, ", ".join(left_out))
        parts.append(one.select_columns(shared))
    together = concatenate_datasets(parts)
    owners = [name for name, one in datasets.items() for _ in range(len(one))]
    ids = together["id"][:]
    if len(set(ids)) < len(ids):
        logger.warning("Some datasets share ids: all ids get their dataset's name in front.")
        together = with_column(
            together, "id", [f"{owner}/{name}" for owner, name in zip(owners, ids, strict=True)], Value("string")
        )
    return together, owners


def _in_one_form(datasets: Mapping[str, Dataset]) -> Mapping[str, Dataset]:
    """Convert the strings of a column to messages, if another dataset has messages there."""
    for column, text in TEXT.items():
        plain = [name for name, one in datasets.items() if one.features[column] == text]
        if len(plain) in (0, len(datasets)):
            continue
        form = next(one.features[column] for name, one in datasets.items() if name not in plain)
        datasets = {name: _as_messages(one, column, form) if name in plain else one for name, one in datasets.items()}
        logger.warning(
            "%s: its %s became messages, since other datasets have messages. Train them with a chat template.",
            ", ".join(plain),
            "prompts" if column == "prompt" else column,
        )
    return datasets


def _as_messages(groups: Dataset, column: str, form: Any) -> Dataset:
    def convert(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if column == "prompt":
            return {column: [[{"role": "user", "content": text}] for text in batch[column]]}
        return {column: [[[{"role": "assistant", "content": text}] for text in pool] for pool in batch[column]]}

    features = Features({**groups.features, column: form})
    return groups.map(convert, batched=True, batch_size=batch_size(groups, 1000), features=features, desc="Converting")


def mix(
    datasets: Mapping[str, Dataset],
    proportions: Mapping[str, float],
    *,
    total: int | None = None,
    max_repeats: int = 4,
    seed: int = 0,
) -> Dataset:
    """Combine datasets by proportions of groups, as `plan_mix` plans.

    The copies of a group have their own ids (`#2`, `#3`, ...), so that a random selector keeps other responses in
    each. The draw depends on the seed and the ids, not on the order of the rows.

    Args:
        datasets: groups by name.
        proportions: the share of each in the groups of the result; only ratios count.
        total: groups of the result, by default as many as possible.
        max_repeats: how often a group may be in the result.
        seed: of the draw.

    Raises:
        ValueError: if names differ, or `total` needs more repeats; it says how many groups are possible.

    Example:

    ```python
    from mrt_plugin import load_groups
    from mrt_plugin.curation import mix

    mixed = mix({"chat": load_groups("pool.jsonl"), "code": load_groups("held_out.jsonl")}, {"chat": 0.7, "code": 0.3})
    ```
    """
    sizes = {name: len(one) for name, one in datasets.items()}
    takes = plan_mix(sizes, proportions, total=total, max_repeats=max_repeats)
    together, owners = combine(datasets)
    return repeat_groups(together, draw_mix(together["id"][:], owners, takes, seed))


class Sample(PoolRule):
    """Draws `groups` groups at random, or repeats groups if there are fewer. In a recipe it mixes datasets, with a
    number for each. For copies and `max_repeats` see Mixing.
    """

    groups: int = Field(ge=1, description="The number of groups of the result.")
    max_repeats: int = Field(4, ge=1, description="How often a group may occur.")
    seed: int | None = Field(None, ge=0, description="Of the draw; by default the seed of the run.")

    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolDecisions:
        most = len(groups) * self.max_repeats
        if self.groups > most:
            raise ValueError(
                f"curation rule `sample` cannot make {self.groups:,} groups of {len(groups):,}, but at most "
                f"{most:,}, each {self.max_repeats} times at most. Lower groups, raise max_repeats, or add data."
            )
        seed = tools.seed if self.seed is None else self.seed
        return _decide(groups["id"][:], [""] * len(groups), {"": self.groups}, seed)
