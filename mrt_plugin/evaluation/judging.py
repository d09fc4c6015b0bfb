"""Have a judge compare each model's samples with the baseline's, or with references, in both orders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.result import Sample, WinRate
from mrt_plugin.evaluation.subject import How, Subject, read_samples
from mrt_plugin.evaluation.win_rate import Comparison, win_rate, with_outcomes
from mrt_plugin.groups.messages import units
from mrt_plugin.models.named_model import NamedModel
from mrt_plugin.planning.paired import Bootstrap
from mrt_plugin.planning.progress import Progress
from mrt_plugin.scoring.judge import Judge, Verdict
from mrt_plugin.scoring.judge_run import Answers, JudgeCost, ask, judge_cost, question_key

REFERENCES = "the references"
"""What a single model is compared with: a prompt's first reference of the highest score."""


@dataclass(frozen=True)
class _Pair:
    model: str
    case: int
    one: Sample
    other: Sample


def opponents(
    cases: Sequence[Case], samples: dict[str, list[list[Sample]]], base: str
) -> tuple[str, list[list[Sample]]]:
    """Return the name and the samples that the models are compared with. A model alone meets the references."""
    if len(samples) > 1:
        return base, samples[base]
    if not any(case.references for case in cases):
        raise ValueError("A judge compares models: give two of them, or data with references for a single one.")
    return REFERENCES, [[Sample(case.right[0])] if case.references else [] for case in cases]


def _pairs(cases: Sequence[Case], samples: dict[str, list[list[Sample]]], base: str, most: int) -> list[_Pair]:
    against, others = opponents(cases, samples, base)
    return [
        _Pair(model, place, one, other)
        for model, own in samples.items()
        if model != against
        for place in range(len(cases))
        for one, other in zip(own[place][:most], others[place][:most], strict=False)
    ]


def _questions(judge: Judge, cases: Sequence[Case], pairs: Sequence[_Pair]) -> Iterator[str]:
    for pair in pairs:
        if pair.one.text != pair.other.text:
            yield judge.ask_pair(cases[pair.case].prompt, pair.one.text, pair.other.text)
            yield judge.ask_pair(cases[pair.case].prompt, pair.other.text, pair.one.text)


def judge_subjects(
    judge: Judge,
    cases: Sequence[Case],
    subjects: Sequence[Subject],
    base: str,
    boot: Bootstrap,
    *,
    samples: int,
    folder: Path,
    progress: Progress,
) -> list[WinRate]:
    """Judge the first `samples` samples of each prompt of each model, and compute the win rates.

    Answers are kept in a journal in `folder`. Errors are those of `mrt_plugin.scoring.judge_run.ask`.
    """
    drawn = {subject.model.name: subject.samples for subject in subjects if subject.samples is not None}
    if base not in drawn and len(drawn) > 1:
        raise ValueError(f"The baseline {base} has no samples to compare with.")
    pairs = _pairs(cases, drawn, base, samples)
    answers: Answers[Verdict] = ask(
        judge,
        lambda: _questions(judge, cases, pairs),
        judge.read_verdict,
        folder,
        lambda done, total: progress("judging", done, total),
    )
    against, _ = opponents(cases, drawn, base)
    found: dict[str, list[Comparison]] = {name: [] for name in drawn if name != against}
    for pair in pairs:
        found[pair.model].append(_compared(judge, cases[pair.case], pair, answers))
    return with_outcomes([win_rate(name, against, some, boot, len(cases)) for name, some in found.items()])


def _compared(judge: Judge, case: Case, pair: _Pair, answers: Answers[Verdict]) -> Comparison:
    one, other = pair.one, pair.other
    return Comparison(
        pair.case,
        answers.values.get(question_key(judge.ask_pair(case.prompt, one.text, other.text))),
        answers.values.get(question_key(judge.ask_pair(case.prompt, other.text, one.text))),
        length=len(units(one.text)) - len(units(other.text)),
        reward=None if one.reward is None or other.reward is None else one.reward - other.reward,
        identical=one.text == other.text,
    )


def cost_of_judging(
    judge: Judge, cases: Sequence[Case], models: Sequence[NamedModel], base: str, how: How
) -> JudgeCost:
    """Return what judging costs at most, before anything is drawn.

    It is exact if all samples exist (`--pool`). Else each sample is counted as `max_tokens` tokens.
    """
    have = {model.name: None if model.pool is None else read_samples(model.pool, cases) for model in models}
    known = {name: own for name, own in have.items() if own is not None}
    if len(known) == len(have):
        return judge_cost(judge, _questions(judge, cases, _pairs(cases, known, base, how.judge_samples)), how.folder)
    opponents(cases, {name: [] for name in have}, base)
    rivals = len([name for name in have if name != base or len(have) == 1])
    count = 2 * rivals * min(how.judge_samples, how.m)
    return _bound(judge, [judge.ask_pair(case.prompt, "", "") for case in cases], count, 2 * _longest(how))


def cost_of_rewards(judge: Judge, cases: Sequence[Case], models: Sequence[NamedModel], how: How) -> JudgeCost:
    """Return what it costs at most to score every sample with a judge, with `max_tokens` tokens for each."""
    count = sum(how.m if model.pool is None else max(map(len, read_samples(model.pool, cases))) for model in models)
    return _bound(judge, [judge.ask_score(case.prompt, "") for case in cases], count, _longest(how))


def _bound(judge: Judge, questions: Sequence[str], times: int, more: int) -> JudgeCost:
    """Return the cost of asking each question so many times, with `more` tokens of responses in it."""
    asked = times * len(questions)
    tokens = sum(times * (-(-len(question.encode()) // 4) + more) for question in questions)
    calls = asked * judge.attempts
    answers = None if judge.max_tokens is None else calls * judge.max_tokens
    return JudgeCost(asked, 0, calls, tokens * judge.attempts, answers)


def _longest(how: How) -> int:
    return how.settings.max_tokens or 1024
