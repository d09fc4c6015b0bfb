"""A pool that is filled up: its groups, and the draws that were made for them before."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from mrt_plugin.groups import load_groups
from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.sources import open_source
from mrt_plugin.groups.write import rows_of
from mrt_plugin.sampling.settings import Job

BEFORE = ("scores_before", "weights_before")
"""Columns for the scores and weights that cover only the responses that were there before."""


@dataclass
class Pool:
    """The groups of a pool, and the rows that `mrt sample` wrote among them, as they were written."""

    groups: Dataset
    written: dict[str, dict[str, Any]]
    """Of each such row, by its id, the columns that `load_groups` does not read."""

    @classmethod
    def read(cls, data: Any, split: str, source: str | None) -> "Pool":
        """Read a pool as `load_groups` does.

        Raises:
            DataError: if it cannot be read.
        """
        groups = load_groups(data, split=split, source=source)
        if source is not None:
            return cls(groups, {})
        opened = open_source(data, split)
        columns = ("prompt", "responses", "samples", "truncated", *BEFORE)
        return cls(
            groups,
            {
                str(row["id"]): {name: row[name] for name in columns if name in row}
                for _, row in opened.rows(Problems(opened.name))
                if _is_written_by_us(row)
            },
        )

    @property
    def as_messages(self) -> bool:
        """Whether responses are lists of messages; all of them are, or none."""
        return isinstance(self.groups[0]["responses"][0], list)

    def missing(self, n: int, elsewhere: Mapping[str, int]) -> list[Job]:
        """As many draws as every group lacks, numbered on from those made before, cut-off ones included.

        Args:
            n: the responses that each group shall have.
            elsewhere: how many draws the pool's own journal knows of, by the job's key.
        """
        jobs = []
        for row in self.rows(rename=False):
            made = [how["draw"] + 1 for how in [*row["samples"], *row["truncated"]] if how is not None]
            known = zip(row["responses"], row["samples"], strict=True)
            others = sorted(canonical(response) for response, how in known if how is None)
            lacking = max(0, n - len(row["responses"]))
            job = Job(row["id"], row["prompt"], lacking, others=digest(b"others", *others) if others else b"")
            jobs.append(replace(job, first=max([*made, elsewhere.get(job.key, 0)], default=0)))
        return jobs

    def rows(self, *, rename: bool) -> Iterator[dict[str, Any]]:
        """The rows as they are before anything is added, with what is known of how each response was drawn.

        Rows whose draws were all cut off come last: `load_groups` leaves them out.

        Args:
            rename: give scores and weights the names of `BEFORE`, since they will not cover all responses.
        """
        seen = set()
        for group in rows_of(self.groups):
            seen.add(group["id"])
            yield _row(group, self.written.get(group["id"]), rename)
        for name, written in self.written.items():
            if name not in seen and not written["responses"]:
                yield _row({"id": name, "prompt": written["prompt"], "responses": []}, written, rename)


def _row(group: dict[str, Any], written: dict[str, Any] | None, rename: bool) -> dict[str, Any]:
    old = list(group["responses"])
    row: dict[str, Any] = {"id": group["id"], "prompt": group["prompt"], "responses": old}
    for name, before in zip(("scores", "weights"), BEFORE, strict=True):
        if name in group:
            row[before if rename else name] = list(group[name])
        elif written is not None and before in written:
            row[before] = _aligned(old, written, before)
    row["finish_reasons"] = list(group.get("finish_reasons") or [None] * len(old))
    row["samples"] = [None] * len(old) if written is None else _aligned(old, written, "samples")
    row["truncated"] = [] if written is None else list(written["truncated"])
    return row


def _aligned(responses: list[Any], written: dict[str, Any], column: str) -> list[Any]:
    """A column with an item for each response, for the responses that loading kept."""
    rest = iter(zip(written["responses"], written[column], strict=False))
    return [next((item for text, item in rest if text == response), None) for response in responses]


def _is_written_by_us(row: dict[str, Any]) -> bool:
    """Whether a row has the columns that `mrt sample` writes; others may use the same names for something else."""
    responses, samples, truncated = (row.get(name) for name in ("responses", "samples", "truncated"))
    return (
        {"id", "prompt"} <= row.keys()
        and isinstance(responses, list)
        and isinstance(samples, list)
        and isinstance(truncated, list)
        and len(samples) == len(responses)
        and all(isinstance(how, dict) and "draw" in how for how in [*samples, *truncated] if how is not None)
    )
