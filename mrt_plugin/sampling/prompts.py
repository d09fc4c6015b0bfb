"""Read the prompts to draw responses for: a file of prompts, or the groups of a pool to extend."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mrt_plugin.groups import GroupReport, load_groups, prompt_key
from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.groups.messages import SURROGATE, clean_messages, has_text, is_sound, kind
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.shapes import GROUPED, id_problem
from mrt_plugin.groups.sources import Row, open_source
from mrt_plugin.groups.unused import PAIR, POOLS, Unused
from mrt_plugin.groups.write import rows_of
from mrt_plugin.sampling.settings import Job

logger = logging.getLogger(__name__)

BEFORE = ("scores_before", "weights_before")
"""Columns for scores and weights that cover only the earlier responses."""


def read_prompts(data: Any, *, split: str = "train", source: str | None = None) -> tuple[list[tuple[str, Any]], int]:
    """Return the distinct prompts in order, each with its id, and the number of rows that repeat an earlier prompt.

    `data` is a text file with one prompt per line, or anything `load_groups` reads: rows with `prompt` (a string or
    messages) or `messages` (up to the last user message), and optionally `id`. Responses are ignored.
    """
    if source is not None:
        groups = load_groups(data, split=split, source=source)
        return [(group["id"], group["prompt"]) for group in groups], 0  # type: ignore[index]
    found: dict[str, Any] = {}
    repeated = 0
    first: tuple[str, str] | None = None
    problems, rows = _open(data, split)
    report = GroupReport(problems.source)
    unused = Unused({*GROUPED, "messages", *POOLS, *PAIR}, problems, report)
    for place, row in rows:
        unused.look(place, row)
        column, prompt = _prompt(place, row, problems)
        if prompt is None:
            continue
        form = "a string" if isinstance(prompt, str) else "a list of messages"
        first = first or (form, place)
        if form != first[0]:
            text = f"it is {form}, but {first[1]} has {first[0]}: use one form for all prompts."
            problems.add(place, column, text)
        given = row.get("id")
        problem = None if given is None else id_problem(given)
        name = prompt_key(prompt) if given is None else str(given)
        if problem:
            problems.add(place, "id", problem)
        elif name not in found:
            found[name] = prompt
        elif given is None:
            repeated += 1
        else:
            problems.add(place, "id", f"{name!r} is the id of an earlier row too: ids must differ. Or remove them.")
    problems.raise_any()
    for line in report.notes():
        logger.warning(line)
    if not found:
        problems.fail("it is empty: write at least one prompt.")
    return list(found.items()), repeated


def _open(data: Any, split: str) -> tuple[Problems, Iterator[Row]]:
    if not isinstance(data, str | Path) or Path(data).suffix != ".txt":
        return open_source(data, split)
    problems = Problems(str(data))
    try:
        lines = Path(data).read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also split at U+2028
    except UnicodeDecodeError as problem:
        problems.fail(f"not UTF-8 text ({problem}): convert the file.", problem)
    numbered = enumerate(lines, start=1)
    return problems, ((f"line {number}", {"prompt": line}) for number, line in numbered if has_text(line))


def _prompt(place: str, row: dict[str, Any], problems: Problems) -> tuple[str, Any]:
    """Return the column of a row's prompt and the checked prompt, or None for it after a problem."""
    column = "messages" if "messages" in row and "prompt" not in row else "prompt"
    value = row.get(column)
    if column == "messages" and isinstance(value, list):
        users = [index for index, item in enumerate(value) if isinstance(item, dict) and item.get("role") == "user"]
        value = value[: users[-1] + 1] if users else value
    complaints: list[str] = []
    if isinstance(value, str) and has_text(value):
        complaints += [] if is_sound(value) else [SURROGATE]
    elif isinstance(value, list) and value:
        value = clean_messages(value, "prompt", complaints.append)
    elif column not in row:
        has = ", ".join(f"`{name}`" for name in row) or "nothing"
        complaints.append(f"it is missing; the row has {has}. Name the column `prompt`.")
    else:
        what = "empty" if isinstance(value, str | list) else kind(value)
        complaints.append(f"it is {what}; it must be a string or a list of messages.")
    for complaint in complaints:
        problems.add(place, column, complaint)
    return column, None if complaints else value


class Pool:
    """The groups of a pool, and the columns of `mrt sample` that `load_groups` does not read, by the row's id."""

    def __init__(self, data: Any, split: str, source: str | None) -> None:
        self.groups = load_groups(data, split=split, source=source)
        self.as_messages = isinstance(self.groups[0]["responses"][0], list)
        self.written: dict[str, dict[str, Any]] = {}
        if source is None:
            columns = ("prompt", "responses", "samples", "truncated", *BEFORE)
            for _, row in open_source(data, split)[1]:
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
