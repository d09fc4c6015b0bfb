"""A sampling run: draw a pool of responses for prompts, or extend a pool."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

from mrt_plugin.groups.paths import check_paths, same_file
from mrt_plugin.groups.write import whole_file
from mrt_plugin.sampling.journal import Journal, draws_made, journal_path
from mrt_plugin.sampling.pool import BEFORE, Pool
from mrt_plugin.sampling.prompts import read_prompts
from mrt_plugin.sampling.settings import Draw, Job, Reply, SampleReport, SamplingSettings

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the number of existing draws and the number of requested draws."""


class Sampler(Protocol):
    """Anything that draws responses: an `Endpoint` or a `LocalModel`."""

    def identity(self) -> dict[str, Any]:
        """Return what the draws depend on besides the settings."""

    def draw(
        self,
        jobs: Sequence[tuple[Job, int]],
        settings: SamplingSettings,
        record: Callable[[list[Reply]], None],
        report: SampleReport,
    ) -> None:
        """Draw the missing responses of each job, and record every reply."""


class Unfinished(RuntimeError):
    """Some draws failed. The others are kept, and the same call continues from there."""


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
    progress: Progress | None = None,
) -> SampleReport:
    """Draw n responses for each prompt and write them as groups.

    Every reply is first written to `OUTPUT.journal`. To resume a stopped or killed run, make the same call again. It
    ends with the same pool as an uninterrupted run (an endpoint must honour seeds for this). A larger n adds to the
    existing draws. The pool appears complete or not at all.

    Args:
        prompts: a file, hub id or dataset of prompts. See `read_prompts`. With `extend`, a pool as `load_groups`
            reads it.
        sampler: an `Endpoint` or a `LocalModel`.
        output: the pool to write, `.jsonl`.
        n: draws per prompt. With `extend`, the target number of responses per group.
        settings: temperature and other sampling settings.
        extend: add to groups with fewer than n responses, as arXiv 2403.11124 does (2 to 4). Draw numbers continue
            after the highest earlier number of a prompt, so that no draw is repeated. Scores and weights become
            `scores_before` and `weights_before`, since the new responses have none. The output may be the pool
            itself if `sample_pool` wrote it.
        source: the public format of the prompts or the pool.
        split: the split of a hub dataset or a `DatasetDict`.
        keep_cut_off: put cut-off responses among the others, distinguished only by `finish_reasons`. By default they
            are stored separately in `truncated`, so that they are not mistaken for complete responses.
        partial: write the pool even if some draws failed.
        progress: called with the number of existing draws and the number of requested draws.

    Returns:
        The counts of the run.

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
        raise ValueError(f"n={n} is too small: it must be at least 1.")
    if output.suffix != ".jsonl":
        raise ValueError(f"{output}: the pool is written as JSON lines; choose a name that ends in .jsonl.")
    if output.exists() and not journal_file.exists():
        raise ValueError(f"{output} is there already, and not from this command: remove it or choose another output.")

    pool = Pool.read(prompts, split, source) if extend else None
    if pool is not None:
        elsewhere = {} if source_file is None else draws_made(journal_path(Path(source_file)))
        wanted, repeated = pool.missing(n, elsewhere), 0
    else:
        wanted, repeated = _fresh(prompts, n, source, split)
    report = SampleReport(prompts=len(wanted), repeated_prompts=repeated, output=str(output))
    report.wanted = sum(job.wanted for job in wanted)
    with Journal(journal_file, {**sampler.identity(), **settings.as_dict()}) as journal:
        jobs = [(job, journal.have(job.key, job.first)) for job in wanted]
        report.reused = sum(min(have, job.wanted) for job, have in jobs)
        _draw(sampler, jobs, settings, journal, report, progress)
        _count(wanted, journal, report)
        if report.unfinished and not partial:
            raise Unfinished(
                f"{report.unfinished:,} of {report.wanted:,} draws could not be had ({report.first_failure}) The "
                f"others are kept in {journal_file}: the same command goes on from there. To write what there is, "
                "say partial (--partial)."
            )
        rows = _rows(wanted, pool, journal, settings, report, keep_cut_off)
        with whole_file(output) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            if file.tell() == 0:
                raise ValueError(f"There is nothing to write: no prompt got a response. {report.first_rejection}")
    _log(report, keep_cut_off)
    return report


def _fresh(prompts: Any, n: int, source: str | None, split: str) -> tuple[list[Job], int]:
    """Return a job of n draws for every prompt, and the number of rows that repeat a prompt."""
    found, repeated = read_prompts(prompts, split=split, source=source)
    return [Job(name, prompt, n) for name, prompt in found], repeated


def _draw(
    sampler: Sampler,
    jobs: list[tuple[Job, int]],
    settings: SamplingSettings,
    journal: Journal,
    report: SampleReport,
    progress: Progress | None,
) -> None:
    open_jobs = [(job, have) for job, have in jobs if journal.rejection(job.key) is None]
    done = report.reused

    def record(replies: list[Reply]) -> None:
        nonlocal done
        journal.add(replies)
        done += sum(len(reply.draws) for reply in replies)
        if progress:
            progress(min(done, report.wanted), report.wanted)

    if progress:
        progress(done, report.wanted)
    if any(have < job.wanted for job, have in open_jobs):
        sampler.draw(open_jobs, settings, record, report)


def _count(jobs: list[Job], journal: Journal, report: SampleReport) -> None:
    """Count what is still missing, according to the journal."""
    report.unfinished = 0
    for job in jobs:
        missing = max(0, job.wanted - journal.have(job.key, job.first))
        rejection = journal.rejection(job.key)
        if missing and rejection is not None:
            report.rejected += 1
            report.first_rejection = report.first_rejection or rejection
        else:
            report.unfinished += missing


def _rows(
    jobs: list[Job],
    pool: Pool | None,
    journal: Journal,
    settings: SamplingSettings,
    report: SampleReport,
    keep_cut_off: bool,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the pool, in the order of the prompts and of the draws."""
    about = {name: value for name, value in settings.as_dict().items() if name != "logprobs"}
    rows: Iterable[dict[str, Any]] = repeat({}) if pool is None else pool.rows(rename=report.wanted > 0)
    as_messages = pool is not None and pool.as_messages
    for job, before in zip(jobs, rows, strict=False):
        row = {"id": job.id, "prompt": job.prompt, "responses": [], "finish_reasons": [], "samples": [], **before}
        row.setdefault("truncated", [])
        for number, (draw, model) in zip(job.numbers, journal.draws(job.key, job.wanted, job.first), strict=False):
            sample = _about(draw, number, model, about)
            ending = draw.ending
            report.whole += ending == "whole"
            report.cut_off += ending == "cut off"
            report.unknown += ending == "unknown"
            if ending == "cut off" and not keep_cut_off:
                row["truncated"].append({"text": draw.text, "finish_reason": draw.finish_reason, **sample})
                continue
            row["responses"].append([{"role": "assistant", "content": draw.text}] if as_messages else draw.text)
            row["finish_reasons"].append(draw.finish_reason)
            row["samples"].append(sample)
            for name in BEFORE:
                if name in row:
                    row[name].append(None)
        if row["responses"] or row["truncated"]:
            yield row


def _about(draw: Draw, number: int, model: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return how a response was drawn."""
    optional = {"tokens": draw.tokens, "reasoning": draw.reasoning, "logprobs": draw.logprobs}
    given = {name: value for name, value in optional.items() if value is not None}
    return {"draw": number, "model": model, **settings, **given}


def _log(report: SampleReport, keep_cut_off: bool) -> None:
    total = report.whole + report.cut_off + report.unknown
    logger.info("%s: %d draws for %d prompts (%d from before).", report.output, total, report.prompts, report.reused)
    if report.cut_off:
        logger.warning(
            "%d of %d draws were cut off before the model ended them. Raise max_tokens%s.",
            report.cut_off,
            total,
            "" if keep_cut_off else ": without them the pool favours short responses",
        )
    if report.unknown:
        logger.warning("%d draws have no finish_reason: whether they are whole is not known.", report.unknown)
    if report.rejected:
        logger.warning(
            "%d prompts were turned away, and have no (or fewer) draws; the first: %s",
            report.rejected,
            report.first_rejection,
        )
    if report.repeated_prompts:
        logger.warning("%d rows repeat an earlier prompt; each prompt is sampled once.", report.repeated_prompts)
