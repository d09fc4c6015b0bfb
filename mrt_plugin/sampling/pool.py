"""A pool to extend: its groups, and the draws already made for them."""

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
"""Columns for scores and weights that cover only the earlier responses."""


@dataclass
class Pool:
    """The groups of a pool, and those of its rows that `mrt sample` wrote, unchanged."""

    groups: Dataset
    written: dict[str, dict[str, Any]]
    """For each row that `mrt sample` wrote, by its id: the columns that `load_groups` does not read."""

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
        """Whether the responses are lists of messages. Either all are, or none."""
        return isinstance(self.groups[0]["responses"][0], list)

    def missing(self, n: int, elsewhere: Mapping[str, int]) -> list[Job]:
        """Return a job per group for its missing draws. Numbers continue after earlier draws, including cut-off ones.

        Args:
            n: the target number of responses per group.
            elsewhere: the number of draws in the pool's own journal, by the job's key.
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
        """Yield the rows before any additions, with what is known about how each response was drawn.

        Rows whose draws were all cut off come last, since `load_groups` skips them.

        Args:
            rename: use the names in `BEFORE` for scores and weights, since they will not cover all responses.
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
    """Return a per-response column, limited to the responses that loading kept."""
    rest = iter(zip(written["responses"], written[column], strict=False))
    return [next((item for text, item in rest if text == response), None) for response in responses]


def _is_written_by_us(row: dict[str, Any]) -> bool:
    """Return whether a row has the columns of `mrt sample`. Other data may use the same names with other meanings."""
    responses, samples, truncated = (row.get(name) for name in ("responses", "samples", "truncated"))
    return (
        {"id", "prompt"} <= row.keys()
        and isinstance(responses, list)
        and isinstance(samples, list)
        and isinstance(truncated, list)
        and len(samples) == len(responses)
        and all(isinstance(how, dict) and "draw" in how for how in [*samples, *truncated] if how is not None)
    )
