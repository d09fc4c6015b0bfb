"""A sampling run: draw a pool of responses for prompts, or extend a pool."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from mrt_plugin.groups.paths import check_paths, same_file
from mrt_plugin.groups.write import whole_file
from mrt_plugin.sampling.journal import Journal, draws_made, journal_path
from mrt_plugin.sampling.options import SamplingSettings
from mrt_plugin.sampling.prompts import BEFORE, Pool, read_prompts
from mrt_plugin.sampling.settings import Job, Reply, Sampler, SampleReport, SamplingTask

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the number of existing draws and the number of requested draws."""


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
    """Draw n responses for each prompt, write them as groups, and return the counts of the run.

    Every reply is first written to `OUTPUT.journal`. To resume a stopped or killed run, make the same call again. It
    ends with the same pool as an uninterrupted run (an endpoint must honour seeds for this). A larger n adds to the
    existing draws. The pool appears complete or not at all.

    Args:
        prompts: a file, hub id or dataset of prompts. See `read_prompts`. With `extend`, a pool.
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
    progress = progress or (lambda done, total: None)
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
            raise Unfinished(
                f"{report.unfinished:,} of {report.wanted:,} draws could not be had ({report.first_failure}) The "
                f"others are kept in {journal_file}: the same command goes on from there. To write what there is, "
                "say partial (--partial)."
            )
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
    _log(report, keep_cut_off)
    return report


def _log(report: SampleReport, keep_cut_off: bool) -> None:
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
