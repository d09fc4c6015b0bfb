"""Split groups into training and held-out ones, by clusters of near-duplicate prompts, and measure what leaks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from mrt_plugin.curation.near import clusters, near_any, prompt_signatures
from mrt_plugin.groups.keys import digest, prompt_key
from mrt_plugin.groups.keys import held_out as draws_held_out
from mrt_plugin.groups.messages import normalised, response_text
from mrt_plugin.options import Bounds


@dataclass(frozen=True)
class SplitReport:
    """The counts of a split with the requested share of clusters."""

    share: float
    seed: int
    threshold: float
    train_groups: int
    held_out_groups: int
    clusters: int
    largest_cluster: int
    moved: int
    """Groups that a split by prompt alone would have put on the other side, away from near prompts."""
    parted_clusters: int
    """Clusters that a split by prompt alone would have divided. This split divides none."""

    def summary(self) -> str:
        total = self.train_groups + self.held_out_groups
        return (
            f"held out: {self.held_out_groups:,} of {total:,} groups ({self.held_out_groups / max(total, 1):.1%}), by "
            f"{self.clusters:,} clusters of near prompts (the largest has {self.largest_cluster:,}). A split by "
            f"prompt alone would have divided {self.parted_clusters:,} clusters; this one divides none."
        )


def split_held_out(
    groups: Dataset, share: float, *, seed: int = 0, threshold: float = 0.8, num_proc: int | None = None
) -> tuple[Dataset, Dataset, SplitReport]:
    """Split the groups into training and held-out ones. A cluster of near prompts stays together.

    A cluster is held out if `mrt_plugin.groups.held_out` holds out its prompt with the smallest key. So the order of
    the rows does not matter, and new data moves a prompt only by joining its cluster.
    """
    Bounds(gt=0, lt=1).check("held_out", share)
    Bounds(gt=0, le=1).check("held_out_threshold", threshold)
    members = clusters(prompt_signatures(groups, num_proc), threshold)
    prompts = groups["prompt"][:]
    keys = np.array([prompt_key(prompt) for prompt in prompts])
    alone = np.array([draws_held_out(prompt, share, seed) for prompt in prompts])
    order = np.lexsort((keys, members))
    first = order[np.unique(members[order], return_index=True)[1]]
    side = alone[first][members]
    sizes, drawn = np.bincount(members), np.bincount(members, weights=alone)
    report = SplitReport(
        share,
        seed,
        threshold,
        train_groups=int((~side).sum()),
        held_out_groups=int(side.sum()),
        clusters=len(sizes),
        largest_cluster=int(sizes.max()),
        moved=int((side != alone).sum()),
        parted_clusters=int(((drawn > 0) & (drawn < sizes)).sum()),
    )
    if side.all() or not side.any():
        raise ValueError(
            f"a held-out share of {share} leaves {report.train_groups:,} training groups and "
            f"{report.held_out_groups:,} held-out ones: they form {len(sizes):,} clusters of near prompts, the "
            f"largest with {report.largest_cluster:,}. Change the share, or raise the threshold ({threshold})."
        )
    return groups.select(np.flatnonzero(~side)), groups.select(np.flatnonzero(side)), report


@dataclass(frozen=True)
class LeakageReport:
    """The overlap of a training set and a held-out set: groups with a prompt near one of the other side."""

    train_groups: int
    held_out_groups: int
    near_train_groups: int
    near_held_out_groups: int
    shared_responses: int
    """Held-out responses that are also in the training set, apart from case and white space: often short answers."""

    def summary(self) -> str:
        return (
            f"leakage: {self.near_train_groups:,} of {self.train_groups:,} training prompts are near a held-out one, "
            f"{self.near_held_out_groups:,} of {self.held_out_groups:,} held-out prompts near a training one; "
            f"{self.shared_responses:,} held-out responses are also in the training set."
        )


def measure_leakage(
    train: Dataset, held_out: Dataset, *, threshold: float = 0.8, num_proc: int | None = None
) -> LeakageReport:
    """Measure how much of a held-out set is also in the training set. See `split_held_out` for `threshold`."""
    signed_train, signed_held_out = (prompt_signatures(side, num_proc) for side in (train, held_out))
    answers = {name for batch in train["responses"] for name in map(_answer_key, batch)}
    return LeakageReport(
        len(train),
        len(held_out),
        int(near_any(signed_train, signed_held_out, threshold).sum()),
        int(near_any(signed_held_out, signed_train, threshold).sum()),
        sum(_answer_key(response) in answers for batch in held_out["responses"] for response in batch),
    )


def _answer_key(response: Any) -> bytes:
    return digest(normalised(response_text(response)).encode())
