"""Generate new prompts from random supports, and keep those that are new (arXiv 2403.11124)."""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from mrt_plugin.endpoint.jobs import Draw, Job, Reply, SampleReport, SamplingSettings, SamplingTask, Unfinished
from mrt_plugin.endpoint.journal import Journal, journal_path
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import has_text, is_sound, prompt_text
from mrt_plugin.groups.paths import check_paths
from mrt_plugin.groups.write import whole_file
from mrt_plugin.options import check_values, option
from mrt_plugin.planning.diversity import (
    Candidate,
    Novelty,
    PromptDiversity,
    Tokenize,
    filter_candidates,
    prompt_diversity,
    words,
)
from mrt_plugin.sampling.options import Sampler

PROMPT_FILE = Path(__file__).with_name("augment_prompt.txt")
"""The instruction to the generating model. `{examples}` is replaced by the supports."""

_DECORATION = re.compile(
    r"^(?:#+\s*)?(?:\**(?:new )?(?:task|prompt|question)\s*(?:\d+\s*)?[:.]\**|\d+[.)])\s*", re.IGNORECASE
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "`": "`"}


@dataclass(frozen=True)
class AugmentSettings:
    """How candidates are generated and filtered.

    `supports` are the numbers n of prompts that a candidate is generated from; each step makes `candidates` for each.
    """

    supports: tuple[int, ...] = (2,)
    candidates: int = option(100, "Candidates per step, for each number of supports.", ge=1)
    steps: int = option(1, "Steps. Later ones also draw supports from the candidates kept before.", ge=1)
    threshold: float = 0.3
    order: int = 2
    p: float = 0.5
    tokenize: Tokenize = words

    def __post_init__(self) -> None:
        check_values(self, type(self))
        if not self.supports or min(self.supports) < 1 or len(set(self.supports)) < len(self.supports):
            raise ValueError(f"supports={self.supports!r} must be different whole numbers from 1, such as 1,2,4.")


@dataclass
class Gain:
    """What the candidates of one step and one number of supports (None: of all) add to the prompts before the step."""

    step: int
    supports: int | None
    candidates: int
    unusable: int
    """Replies that are cut off, empty, or were rejected."""
    kept: int
    after: PromptDiversity
    r: float
    """The gain in r, the share of distinct n-grams."""
    d: float
    """The gain in d = r·n^p."""
    d_at_equal: float | None
    """The gain in d from as many candidates of each number of supports, the first that were kept. None for all."""


@dataclass
class Generated:
    """The result of `generate_prompts`."""

    before: PromptDiversity
    after: PromptDiversity
    gains: list[Gain]
    dropped: list[Novelty]
    report: SampleReport
    kept: int = 0
    output: str = ""


@dataclass(frozen=True)
class _Ask:
    """One candidate to generate: its job, and the prompts that it is generated from."""

    job: Job
    count: int
    names: list[str]
    texts: list[str] = field(repr=False)


def read_instruction(path: str | Path) -> str:
    """Return the text of an instruction file, or raise ValueError unless it says where the examples go."""
    text = Path(path).read_text(encoding="utf-8")
    if text.count("{examples}") != 1:
        raise ValueError(f"{path}: write {{examples}} once, where the prompts that are given as examples go.")
    return text


def generate_prompts(
    groups: Dataset,
    sampler: Sampler,
    output: str | Path,
    settings: AugmentSettings,
    sampling: SamplingSettings,
    *,
    instruction: str | Path = PROMPT_FILE,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Generated:
    """Generate candidates, keep those that overlap little with their supports, the prompts and each other.

    The kept prompts are written to `output` (.jsonl) with their provenance: `supports` (texts) and `support_ids`, the
    `step`, `model`, `seed` and `overlap`. Every reply is first written to `OUTPUT.journal`, from which the same call
    continues. The next command is `mrt sample`.

    Raises:
        ValueError: for settings that cannot be used, or too few prompts.
        Unfinished: if some replies could not be had.
    """
    output = Path(output)
    text = read_instruction(instruction)
    if output.suffix != ".jsonl":
        raise ValueError(f"{output}: the prompts are written as JSON lines; choose a name that ends in .jsonl.")
    check_paths([("--output", output), ("its journal", journal_path(output))], [("the instruction", instruction)])
    if output.exists() and not journal_path(output).exists():
        raise ValueError(f"{output} is there already, and not from this command: remove it or choose another output.")
    names, owned = list(groups["id"]), [prompt_text(prompt) for prompt in groups["prompt"]]
    as_messages = isinstance(groups[0]["prompt"], list)
    if max(settings.supports) > len(owned):
        raise ValueError(f"supports={max(settings.supports)}: there are only {len(owned)} prompts to draw from.")
    how: dict[str, Any] = {"order": settings.order, "tokenize": settings.tokenize}
    before = prompt_diversity(owned, p=settings.p, **how)
    found = Generated(before, before, [], [], SampleReport(output=str(output)), output=str(output))
    identity = sampler.identity()
    rows: list[dict[str, Any]] = []
    with Journal(journal_path(output), {**identity, **sampling.as_dict()}) as journal:
        for step in range(1, settings.steps + 1):
            asks = list(_asks(names, owned, text, settings, step, sampling.seed))
            replies = _draw(sampler, [ask.job for ask in asks], sampling, journal, found.report, step, progress)
            usable = [
                (ask, candidate, model) for ask, (candidate, model) in zip(asks, replies, strict=True) if candidate
            ]
            tried = [Candidate(candidate, ask.texts) for ask, candidate, _ in usable]
            verdicts = filter_candidates(tried, owned, threshold=settings.threshold, **how)
            kept = [(*one, verdict) for one, verdict in zip(usable, verdicts, strict=True) if verdict.kept]
            found.dropped += [verdict for verdict in verdicts if not verdict.kept]
            found.gains += _gains(settings, step, owned, asks, usable, kept)
            for ask, candidate, model, verdict in kept:
                prompt: Any = [{"role": "user", "content": candidate}] if as_messages else candidate
                about = {"supports": ask.texts, "support_ids": ask.names, "step": step, "seed": sampling.seed}
                row = {"id": ask.job.id, "prompt": prompt, **about, "model": model or identity["model"]}
                rows.append(row | {"overlap": verdict.overlap})
                names.append(ask.job.id)
                owned.append(candidate)
    found.after = prompt_diversity(owned, p=settings.p, **how)
    with whole_file(output) as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    found.kept = len(rows)
    return found


def _gains(
    settings: AugmentSettings,
    step: int,
    owned: Sequence[str],
    asks: Sequence[_Ask],
    usable: Sequence[tuple[_Ask, str, str | None]],
    kept: Sequence[tuple[_Ask, str, str | None, Novelty]],
) -> list[Gain]:
    """Return what a step's kept candidates add to the prompts before it, for each number of supports and for all."""

    def measure(new: Sequence[str]) -> PromptDiversity:
        return prompt_diversity([*owned, *new], p=settings.p, order=settings.order, tokenize=settings.tokenize)

    start, gains = measure([]), []
    fewest = min(sum(ask.count == count for ask, *_ in kept) for count in settings.supports)
    for count in (*settings.supports, None):
        new = [candidate for ask, candidate, *_ in kept if count in (ask.count, None)]
        asked = sum(count in (ask.count, None) for ask in asks)
        read = sum(count in (ask.count, None) for ask, *_ in usable)
        after = measure(new)
        equal = None if count is None else measure(new[:fewest]).d - start.d
        gain = Gain(step, count, asked, asked - read, len(new), after, after.r - start.r, after.d - start.d, equal)
        gains.append(gain)
    return gains


def _asks(
    names: Sequence[str], prompts: Sequence[str], instruction: str, settings: AugmentSettings, step: int, seed: int
) -> list[_Ask]:
    """Return the candidates of a step. Those of each number of supports alternate, so that none is filtered first."""
    asks = []
    for number in range(settings.candidates):
        for count in settings.supports:
            place = f"step {step}, {count} supports, candidate {number}"
            draw = random.Random(digest(b"augment", str(seed).encode(), place.encode()))
            chosen = draw.sample(range(len(prompts)), count)
            texts = [prompts[index] for index in chosen]
            examples = "\n\n".join(f"{index}. {text}" for index, text in enumerate(texts, start=1))
            name = f"augmented-{digest(b'name', str(seed).encode(), place.encode()).hex()}"
            job = Job(name, instruction.replace("{examples}", examples), 1)
            asks.append(_Ask(job, count, [names[index] for index in chosen], texts))
    return asks


def _draw(
    sampler: Sampler,
    jobs: list[Job],
    sampling: SamplingSettings,
    journal: Journal,
    report: SampleReport,
    step: int,
    progress: Callable[[str, int, int], None],
) -> list[tuple[str | None, str | None]]:
    """Return for each job the candidate, or None if its reply is of no use, and the model that the endpoint named."""
    jobs = [replace(job, have=journal.have(job.key)) for job in jobs]
    done = sum(job.have for job in jobs)
    report.prompts += len(jobs)
    report.wanted += len(jobs)
    report.reused += done

    def record(replies: list[Reply]) -> None:
        nonlocal done
        journal.add(replies)
        done += sum(len(reply.draws) for reply in replies)
        progress(f"step {step}", done, len(jobs))

    waiting = [job for job in jobs if job.key not in journal.rejected]
    if any(not job.have for job in waiting):
        sampler.draw(SamplingTask(waiting, sampling, record, report))
    failed = [job for job in waiting if not journal.have(job.key) and job.key not in journal.rejected]
    if failed:
        what = f"{len(failed):,} of {len(jobs):,} candidates of step {step} could not be had ({report.first_failure})"
        raise Unfinished(f"{what} The others are kept in {journal.path}: the same command goes on from there.")
    found: list[tuple[str | None, str | None]] = []
    for job in jobs:
        draws = journal.draws(job.key, 1)
        for draw, _ in draws:
            report.count(draw)
        report.rejected += not draws
        found.append((candidate_of(draws[0][0]), draws[0][1]) if draws else (None, None))
    return found


def candidate_of(draw: Draw) -> str | None:
    """Return the prompt in a reply, without a heading, a number or quotes around it. None if cut off or empty."""
    text = _DECORATION.sub("", draw.text.strip()).strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[1:-1].count(text[-1]) == 0:
        text = text[1:-1].strip()
    return text if draw.ending != "cut off" and has_text(text) and is_sound(text) else None


def as_document(found: Generated) -> dict[str, Any]:
    """Return the result for JSON."""
    dropped = [{name: getattr(one, name) for name in ("prompt", "overlap", "nearest")} for one in found.dropped]
    return {**asdict(found), "dropped": dropped}
