"""A pool to extend: its groups, and the draws already made for them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from mrt_plugin.groups import load_groups
from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.sources import open_source
from mrt_plugin.groups.write import rows_of
from mrt_plugin.sampling.settings import Job

BEFORE = ("scores_before", "weights_before")
"""Columns for scores and weights that cover only the earlier responses."""


class Pool:
    """The groups of a pool, and the columns of `mrt sample` that `load_groups` does not read, by the row's id."""

    def __init__(self, data: Any, split: str, source: str | None) -> None:
        self.groups = load_groups(data, split=split, source=source)
        self.as_messages = isinstance(self.groups[0]["responses"][0], list)
        self.written: dict[str, dict[str, Any]] = {}
        if source is None:
            opened = open_source(data, split)
            columns = ("prompt", "responses", "samples", "truncated", *BEFORE)
            for _, row in opened.rows(Problems(opened.name)):
                if _is_written_by_us(row):
                    self.written[str(row["id"])] = {name: row[name] for name in columns if name in row}

    def missing(self, n: int, elsewhere: Mapping[str, int]) -> list[Job]:
        """Return a job per group that fills it up to n, after its earlier draws, those `elsewhere` too."""
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
        """Yield the rows before any additions; with `rename`, scores and weights get the names in `BEFORE`.

        Rows whose draws were all cut off come last, since `load_groups` skips them.
        """
        skipped = dict(self.written)
        for group in rows_of(self.groups):
            skipped.pop(group["id"], None)
            yield self._row(group, rename)
        for name, written in skipped.items():
            if not written["responses"]:
                yield self._row({"id": name, "prompt": written["prompt"], "responses": []}, rename)

    def _row(self, group: dict[str, Any], rename: bool) -> dict[str, Any]:
        written = self.written.get(group["id"], {})
        old = list(group["responses"])
        row: dict[str, Any] = {"id": group["id"], "prompt": group["prompt"], "responses": old}
        for name, before in zip(("scores", "weights"), BEFORE, strict=True):
            if name in group:
                row[before if rename else name] = list(group[name])
            elif before in written:
                row[before] = _aligned(old, written, before)
        row["finish_reasons"] = list(group.get("finish_reasons") or [None] * len(old))
        row["samples"] = _aligned(old, written, "samples") if written else [None] * len(old)
        row["truncated"] = list(written.get("truncated", []))
        return row


def _aligned(responses: list[Any], written: dict[str, Any], column: str) -> list[Any]:
    """Return a per-response column, limited to the responses that loading kept."""
    rest = iter(zip(written["responses"], written[column], strict=False))
    return [next((item for text, item in rest if text == response), None) for response in responses]


def _is_written_by_us(row: dict[str, Any]) -> bool:
    """Return whether a row has the columns of `mrt sample`. Other data may use the same names with other meanings."""
    lists = [row.get(name) for name in ("responses", "samples", "truncated")]
    if not {"id", "prompt"} <= row.keys() or not all(isinstance(column, list) for column in lists):
        return False
    responses, samples, truncated = cast("list[list[Any]]", lists)
    known = [how for how in [*samples, *truncated] if how is not None]
    return len(samples) == len(responses) and all(isinstance(how, dict) and "draw" in how for how in known)
