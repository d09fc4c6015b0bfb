"""Draw a pool of responses for prompts, or extend a pool: read the prompts, run the sampler, write the groups."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, cast

from mrt_plugin.endpoint.jobs import Job, Reply, SampleReport, SamplingSettings, SamplingTask, Unfinished
from mrt_plugin.endpoint.journal import Journal, draws_made, journal_path
from mrt_plugin.groups import GroupReport, load_groups, prompt_key
from mrt_plugin.groups.keys import canonical, digest
from mrt_plugin.groups.messages import SURROGATE, clean_messages, has_text, is_sound, kind
from mrt_plugin.groups.paths import check_paths, same_file
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.shapes import GROUPED, id_problem
from mrt_plugin.groups.sources import Row, open_source
from mrt_plugin.groups.unused import PAIR, POOLS, Unused
from mrt_plugin.groups.write import rows_of, whole_file
from mrt_plugin.sampling.options import Sampler

logger = logging.getLogger(__name__)

BEFORE = ("scores_before", "weights_before")
"""Columns for scores and weights that cover only the earlier responses."""


def sample_pool(
    prompts: Any,
    sampler: Sampler,
    output: str | Path,
    *,
    n: int = 16,
    settings: SamplingSettings | None = None,
    extend: bool = False,
    source: str | None = None,
    split: str = "train",
    keep_cut_off: bool = False,
    partial: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SampleReport:
    """Draw n responses for each prompt, write them as groups, and return the counts of the run.

    Every reply is first written to `OUTPUT.journal`. To resume a stopped or killed run, make the same call again. It
    ends with the same pool as an uninterrupted run (an endpoint must honour seeds for this). A larger n adds to the
    existing draws. The pool appears complete or not at all.

    Args:
        prompts: a file, hub id or dataset of prompts. Text has one per line. With `extend`, a pool.
        sampler: an `Endpoint` or a `LocalModel`.
        output: the pool to write, `.jsonl`.
        n: draws per prompt. With `extend`, the target number of responses per group.
        settings: temperature and other sampling settings.
        extend: add to groups with fewer than n responses, as arXiv 2403.11124 does (2 to 4). No earlier draw is
            repeated. Scores and weights become `scores_before` and `weights_before`, since the new responses have
            none. The output may be the pool itself if `sample_pool` wrote it.
        source: the public format of the prompts or the pool.
        split: the split of a hub dataset or a `DatasetDict`.
        keep_cut_off: put cut-off responses among the others, distinguished only by `finish_reasons`. By default they
            are stored separately in `truncated`.
        partial: write the pool even if some draws failed.
        progress: called with the number of existing draws and the number of requested draws.

    Raises:
        DataError: if the prompts cannot be read.
        ValueError: if the output cannot be written, or the journal was made with other settings.
        Unfinished: if some draws failed.
        EndpointError: if the endpoint cannot be used, or stopped answering.

    Example:

    ```python
    from mrt_plugin import load_groups
    from mrt_plugin.sampling import Endpoint, SamplingSettings, sample_pool

    endpoint = Endpoint("http://localhost:8000/v1")
    sample_pool("prompts.jsonl", endpoint, "pool.jsonl", n=16, settings=SamplingSettings(max_tokens=512))
    groups = load_groups("pool.jsonl")
    ```
    """
    settings = settings or SamplingSettings()
    output = Path(output)
    journal_file = journal_path(output)
    in_place = extend and isinstance(prompts, str | Path) and same_file(prompts, output) and journal_file.exists()
    source_file = prompts if isinstance(prompts, str | Path) and not in_place else None
    check_paths([("--output", output), ("its journal", journal_file)], [("the prompts", source_file)])
    if n < 1:
        raise ValueError(f"n={n} must be at least 1.")
    if output.suffix != ".jsonl":
        raise ValueError(f"{output}: the pool is written as JSON lines; choose a name that ends in .jsonl.")
    if output.exists() and not journal_file.exists():
        raise ValueError(f"{output} is there already, and not from this command: remove it or choose another output.")

    report = SampleReport(output=str(output))
    pool = Pool(prompts, split, source) if extend else None
    if pool is not None:
        jobs = pool.missing(n, {} if source_file is None else draws_made(journal_path(Path(source_file))))
    else:
        found, report.repeated_prompts = read_prompts(prompts, split=split, source=source)
        jobs = [Job(name, prompt, n) for name, prompt in found]
    report.prompts, report.wanted = len(jobs), sum(job.wanted for job in jobs)
    stored = settings.as_dict()
    with Journal(journal_file, {**sampler.identity(), **stored}) as journal:
        jobs = [replace(job, have=journal.have(job.key, job.first)) for job in jobs]
        done = report.reused = sum(min(job.have, job.wanted) for job in jobs)
        progress(done, report.wanted)

        def record(replies: list[Reply]) -> None:
            nonlocal done
            journal.add(replies)
            done += sum(len(reply.draws) for reply in replies)
            progress(min(done, report.wanted), report.wanted)

        open_jobs = [job for job in jobs if job.key not in journal.rejected]
        if any(job.have < job.wanted for job in open_jobs):
            sampler.draw(SamplingTask(open_jobs, settings, record, report))
        missing = {job.key: max(0, job.wanted - journal.have(job.key, job.first)) for job in jobs}
        refused = [journal.rejected[key] for key, count in missing.items() if count and key in journal.rejected]
        report.rejected, report.first_rejection = len(refused), next(iter(refused), "")
        report.unfinished = sum(count for key, count in missing.items() if key not in journal.rejected)
        if report.unfinished and not partial:
            what = f"{report.unfinished:,} of {report.wanted:,} draws could not be had ({report.first_failure})"
            remedy = "the same command goes on from there, and partial (--partial) writes what there is."
            raise Unfinished(f"{what} The others are kept in {journal_file}: {remedy}")
        del stored["logprobs"]
        before = repeat({}) if pool is None else pool.rows(rename=report.wanted > 0)
        as_messages = pool is not None and pool.as_messages
        with whole_file(output) as file:
            for job, old in zip(jobs, before, strict=False):
                row = {"id": job.id, "prompt": job.prompt, "responses": [], "finish_reasons": [], "samples": [], **old}
                row.setdefault("truncated", [])
                draws = journal.draws(job.key, job.wanted, job.first)
                for number, (draw, model) in enumerate(draws, start=job.first):
                    sample = {"draw": number, "model": model, **stored, **draw.about}
                    report.count(draw)
                    if draw.ending == "cut off" and not keep_cut_off:
                        row["truncated"].append({"text": draw.text, "finish_reason": draw.finish_reason, **sample})
                        continue
                    text = [{"role": "assistant", "content": draw.text}] if as_messages else draw.text
                    added = {"responses": text, "finish_reasons": draw.finish_reason, "samples": sample}
                    for name in (*added, *(name for name in BEFORE if name in row)):
                        row[name].append(added.get(name))
                if row["responses"] or row["truncated"]:
                    file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            if file.tell() == 0:
                raise ValueError(f"There is nothing to write: no prompt got a response. {report.first_rejection}")
    total = report.whole + report.cut_off + report.unknown
    logger.info("%s: %d draws for %d prompts (%d from before).", report.output, total, report.prompts, report.reused)
    advice = "Raise max_tokens" + ("." if keep_cut_off else ": without them the pool favours short responses.")
    for count, warning in (
        (report.cut_off, f"of {total} draws were cut off before the model ended them. {advice}"),
        (report.unknown, "draws have no finish_reason: it is not known whether they are complete."),
        (report.rejected, f"prompts were rejected, and have no (or fewer) draws; the first: {report.first_rejection}"),
        (report.repeated_prompts, "rows repeat an earlier prompt; each prompt is sampled once."),
    ):
        if count:
            logger.warning("%d %s", count, warning)
    return report


def read_prompts(data: Any, *, split: str = "train", source: str | None = None) -> tuple[list[tuple[str, Any]], int]:
    """Return the distinct prompts in order, each with its id, and the number of rows that repeat an earlier prompt.

    `data` is a text file with one prompt per line, or anything `load_groups` reads; responses may be missing.
    """
    if source is not None:
        groups = load_groups(data, split=split, source=source)
        return [(group["id"], group["prompt"]) for group in groups], 0  # type: ignore[index]
    found: dict[str, Any] = {}
    repeated = 0
    first: tuple[str, str] | None = None
    problems, rows = _open(data, split)
    report = GroupReport(problems.source)
    unused = Unused({*GROUPED, "messages", *POOLS, *PAIR} - {"category"}, problems, report)
    for place, row in rows:
        unused.look(place, row)
        column, prompt = _prompt(place, row, problems)
        if prompt is None:
            continue
        form = "a string" if isinstance(prompt, str) else "a list of messages"
        first = first or (form, place)
        if form != first[0]:
            problems.add(place, column, f"it is {form}, but {first[1]} has {first[0]}: use one form for all prompts.")
        given = row.get("id")
        name = prompt_key(prompt) if given is None else str(given)
        if given is not None and (problem := id_problem(given)):
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
    """The groups of a pool, and the columns of `mrt sample` that `load_groups` does not read, by row id."""

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
        """Yield the rows without additions, last those that `load_groups` skips, whose draws were all cut off."""
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
        if "category" in group:
            row["category"] = group["category"]
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
    """Return whether a row has the columns of `mrt sample`. Other data may give these names other meanings."""
    lists = [row.get(name) for name in ("responses", "samples", "truncated")]
    if not {"id", "prompt"} <= row.keys() or not all(isinstance(column, list) for column in lists):
        return False
    responses, samples, truncated = cast("list[list[Any]]", lists)
    known = [how for how in [*samples, *truncated] if how is not None]
    return len(samples) == len(responses) and all(isinstance(how, dict) and "draw" in how for how in known)
