"""The held-out split: made before any curation, and by clusters of near-duplicate prompts."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from mrt_plugin.curation.near import clusters, prompt_signatures
from mrt_plugin.groups.keys import held_out as draws_held_out
from mrt_plugin.groups.keys import prompt_key
from mrt_plugin.options import Bounds


@dataclass
class SplitReport:
    """What a split did."""

    share: float
    """As asked for: the expected share of clusters."""
    seed: int
    threshold: float
    train_groups: int = 0
    held_out_groups: int = 0
    clusters: int = 0
    largest_cluster: int = 0
    moved: int = 0
    """Groups that are on another side than a split by prompt alone would have put them: it would have parted them from
    prompts that are near theirs."""
    parted_clusters: int = 0
    """Clusters that a split by prompt alone would have parted. This split parts none."""

    def as_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def summary(self) -> str:
        """One line."""
        total = self.train_groups + self.held_out_groups
        return (
            f"held out: {self.held_out_groups:,} of {total:,} groups ({self.held_out_groups / max(total, 1):.1%}), by "
            f"{self.clusters:,} clusters of near prompts (the largest has {self.largest_cluster:,}). A split by "
            f"prompt alone would have parted {self.parted_clusters:,} clusters; this one parts none."
        )


SHARE = Bounds(gt=0, lt=1)
"""Of prompts that are held out: something is left on both sides."""

THRESHOLD = Bounds(gt=0, le=1)
"""Of the similarity from which prompts are near."""


def split_held_out(
    groups: Dataset, share: float, *, seed: int = 0, threshold: float = 0.8, num_proc: int | None = None
) -> tuple[Dataset, Dataset, SplitReport]:
    """Part the groups into training and held-out ones, whole clusters of near-duplicate prompts at a time.

    Split before curation, so that the held-out groups are what the data is, not what the rules like. Prompts whose
    character 5-grams have a Jaccard similarity of at least `threshold`, directly or by a chain, are one cluster. It is
    held out if the prompt with the smallest key is, by `mrt_plugin.groups.held_out`: so the answer does not depend on
    the order of the rows, a prompt with no near one is where a split by prompt puts it, and new data moves a prompt
    only by joining its cluster.

    Args:
        groups: as `load_groups` gives them.
        share: in (0, 1), the expected share of clusters held out.
        seed: another seed, another split.
        threshold: in (0, 1].
        num_proc: processes that hash the prompts.

    Returns:
        Training groups, held-out groups, and the counts.

    Raises:
        ValueError: if the share is out of bounds, or one side would be empty.

    Example:

    ```python
    from mrt_plugin import load_groups
    from mrt_plugin.curation import split_held_out

    train, held_out, report = split_held_out(load_groups("pool.jsonl"), 0.1, seed=7)
    ```
    """
    SHARE.check("held_out", share)
    THRESHOLD.check("held_out_threshold", threshold)
    members = clusters(prompt_signatures(groups, num_proc), threshold)
    prompts = groups["prompt"][:]
    keys = np.array([prompt_key(prompt) for prompt in prompts])
    alone = np.array([draws_held_out(prompt, share, seed) for prompt in prompts])
    order = np.lexsort((keys, members))
    first = order[np.unique(members[order], return_index=True)[1]]
    side = alone[first][members]
    sizes = np.bincount(members)
    drawn = np.bincount(members, weights=alone)
    report = SplitReport(
        share,
        seed,
        threshold,
        int((~side).sum()),
        int(side.sum()),
        len(sizes),
        int(sizes.max()),
        int((side != alone).sum()),
        int(((drawn > 0) & (drawn < sizes)).sum()),
    )
    if side.all() or not side.any():
        raise ValueError(
            f"a held-out share of {share} leaves {report.train_groups:,} training groups and "
            f"{report.held_out_groups:,} held-out ones: the {len(groups):,} groups form {len(sizes):,} clusters of "
            f"near prompts, the largest with {report.largest_cluster:,}. Change the share, or raise the threshold "
            f"({threshold})."
        )
    return groups.select(np.flatnonzero(~side)), groups.select(np.flatnonzero(side)), report
