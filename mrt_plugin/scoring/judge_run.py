"""Ask a judge: count what a run costs before it starts, keep every answer in a journal, and make scores of them."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from mrt_plugin.endpoint.jobs import Job, Reply, SampleReport, SamplingTask, Unfinished
from mrt_plugin.endpoint.journal import Journal, draws_made
from mrt_plugin.groups.batches import chunked
from mrt_plugin.scoring.cache import cache_directory
from mrt_plugin.scoring.judge import Judge, journal_file

logger = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE = 4096
"""Questions in memory at a time."""


@dataclass(frozen=True)
class JudgeCost:
    """What a run costs at most. Tokens are estimated as UTF-8 bytes / 4."""

    questions: int
    answered: int
    """Questions whose answer an earlier run has kept."""
    calls: int
    """Requests, with the repeated ones if every answer is unreadable, without retries after failures."""
    prompt_tokens: int
    answer_tokens: int | None
    """None if the length of an answer has no limit."""

    def line(self) -> str:
        answers = "no limit on" if self.answer_tokens is None else f"at most {self.answer_tokens:,}"
        kept = f" ({self.answered:,} answered by earlier runs)" if self.answered else ""
        return (
            f"{self.questions:,} questions{kept}, at most {self.calls:,} calls, about {self.prompt_tokens:,} tokens "
            f"of questions and {answers} tokens of answers."
        )


@dataclass
class Answers(Generic[T]):
    """The readable answers by `question_key`, and how many others there are."""

    values: dict[str, T] = field(default_factory=dict)
    asked: int = 0
    unreadable: int = 0
    """Answers that give no score or verdict, `cut_off` ones and `rejected` questions included."""
    cut_off: int = 0
    rejected: int = 0
    example: str = ""
    report: SampleReport = field(default_factory=SampleReport)

    def summary(self) -> str:
        parts = [f"{self.unreadable:,} of {self.asked:,} answers are unreadable"]
        parts += [f"{self.cut_off:,} of them were cut off: raise max_tokens"] if self.cut_off else []
        parts += [f"{self.rejected:,} questions were rejected"] if self.rejected else []
        return f"{'; '.join(parts)}. For example: {self.example!r}"


def question_key(question: str) -> str:
    return Job("", question, 1).key


def judge_cost(judge: Judge, questions: Iterable[str], folder: Path) -> JudgeCost:
    """Count the distinct questions of a run, and those that the journal has answers to. No request is made."""
    made, seen, answered, tokens = draws_made(journal_file(judge, folder)), set(), 0, 0
    for question in questions:
        key = question_key(question)
        if key not in seen:
            seen.add(key)
            answered += key in made
            tokens += 0 if key in made else -(-len(question.encode()) // 4)
    calls = (len(seen) - answered) * judge.attempts
    limit = judge.max_tokens
    return JudgeCost(len(seen), answered, calls, tokens * judge.attempts, None if limit is None else calls * limit)


def ask(
    judge: Judge,
    questions: Callable[[], Iterable[str]],
    read: Callable[[str], T | None],
    folder: Path,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Answers[T]:
    """Ask each distinct question once, and return what `read` makes of the answers.

    An unreadable answer is asked for again, up to the judge's `attempts`. `questions` is called twice, and yields the
    same questions each time. Every answer is kept in a journal in `folder`: a stopped run goes on from there.

    Raises:
        ValueError: if the run may need more than `max_calls`, before the first request.
        Unfinished: if some answers could not be had.
        EndpointError: if the endpoint cannot be used, or stopped answering.
    """
    cost = judge_cost(judge, questions(), folder)
    todo = cost.questions - cost.answered
    if judge.max_calls is not None and todo > judge.max_calls:
        what = f"{judge.name}: {todo:,} questions are to be asked, and at most {judge.max_calls:,} calls are allowed"
        raise ValueError(f"{what} (max_calls). Judge fewer prompts or responses, or raise it.")
    from mrt_plugin.endpoint.client import Endpoint

    options = {**vars(judge.endpoint), "max_requests": judge.max_calls}
    endpoint = Endpoint(judge.url, judge.model, **options)
    found: Answers[T] = Answers()
    settings, seen = judge.settings, set[str]()
    with Journal(journal_file(judge, folder), {**endpoint.identity(), **settings.as_dict()}) as journal:

        def record(replies: list[Reply]) -> None:
            journal.add(replies)
            progress(min(found.asked + len(replies), cost.questions), cost.questions)

        for some in chunked(_new(questions(), seen), AT_ONCE):
            left = [Job("", question, 1) for question in some]
            for attempt in range(1, judge.attempts + 1):
                jobs = [Job("", job.prompt, attempt, have=journal.have(job.key)) for job in left]
                jobs = [job for job in jobs if job.have == attempt - 1 and job.key not in journal.rejected]
                if jobs:
                    endpoint.draw(SamplingTask(jobs, settings, record, found.report))
                left = [job for job in left if not _read(job, attempt, journal, read, found.values)]
            found.asked += len(some)
            progress(found.asked, cost.questions)
            for job in left:
                _count(job, journal, found)
    if found.report.unfinished:
        what = f"{judge.name}: {found.report.unfinished:,} answers could not be had ({found.report.first_failure})"
        raise Unfinished(f"{what} The others are kept: the same command goes on from there.")
    if found.unreadable:
        logger.warning("%s: %s", judge.name, found.summary())
    if found.unreadable > judge.max_unreadable * found.asked:
        what = f"{judge.name}: {found.summary()}. At most {judge.max_unreadable:.0%} may be (max_unreadable)."
        raise ValueError(f"{what} Check the question, the model and max_tokens.")
    return found


def _new(questions: Iterable[str], seen: set[str]) -> Iterator[str]:
    for question in questions:
        if (key := question_key(question)) not in seen:
            seen.add(key)
            yield question


def _read(job: Job, attempt: int, journal: Journal, read: Callable[[str], T | None], values: dict[str, T]) -> bool:
    """Read the answers to a question, up to that attempt, and keep the first readable one."""
    for draw, _ in journal.draws(job.key, attempt):
        value = read(draw.text)
        if value is not None:
            values[job.key] = value
            return True
    return False


def _count(job: Job, journal: Journal, found: Answers[Any]) -> None:
    """Count a question without a readable answer. Unfinished ones are counted by the endpoint."""
    draws = journal.draws(job.key, journal.have(job.key))
    rejected = journal.rejected.get(job.key)
    if not draws and rejected is None:
        return
    found.unreadable += 1
    found.rejected += rejected is not None and not draws
    found.cut_off += any(draw.ending == "cut off" for draw, _ in draws)
    found.example = found.example or (draws[-1][0].text[-200:] if draws else str(rejected)[:200])


def score_questions(judge: Judge, groups: Dataset) -> Iterator[str]:
    """Yield the question for every response of all groups."""
    for batch in groups.select_columns(["prompt", "responses"]).iter(256):
        for prompt, responses in zip(batch["prompt"], batch["responses"], strict=True):
            for response in responses:
                yield judge.ask_score(prompt, response)


def judge_scores(judge: Judge, groups: Dataset, score_cache: str | Path | None = None) -> Dataset:
    """Return a dataset with the column `scores` from a judge, one number per response.

    A response without a readable answer gets the mean of its group, so that it is neither preferred nor refused. In a
    group without any readable answer, all get the mean of all groups.
    """
    folder = cache_directory(score_cache)
    with tqdm(desc=f"Judging ({judge.name})", unit=" responses", delay=2) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = ask(judge, lambda: score_questions(judge, groups), judge.read_score, folder, show)
    if not found.values:
        raise ValueError(f"{judge.name}: no answer is readable. {found.summary()}")
    overall = float(np.mean(list(found.values.values())))
    questions, column = score_questions(judge, groups), []
    for responses in groups["responses"]:
        given = [found.values.get(question_key(next(questions))) for _ in responses]
        known = [value for value in given if value is not None]
        mean = float(np.mean(known)) if known else overall
        column.append([mean if value is None else value for value in given])
    return Dataset.from_dict({"scores": column}, features=Features({"scores": List(Value("float64"))}))


def cost_of_scores(
    judges: Sequence[Judge], groups: Dataset, score_cache: str | Path | None = None
) -> dict[str, JudgeCost]:
    """Return what it costs to score groups with each judge, by its name."""
    folder = cache_directory(score_cache)
    return {judge.name: judge_cost(judge, score_questions(judge, groups), folder) for judge in judges}
