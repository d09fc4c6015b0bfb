"""Measure one model of an evaluation on each prompt: its likelihoods, its samples and what it forgot."""

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Json, List, Value
from peft import PeftModel

from mrt_plugin.encoding import Encoder
from mrt_plugin.endpoint.jobs import Draw, SamplingSettings
from mrt_plugin.evaluation.cases import Case, Checker
from mrt_plugin.evaluation.forgetting import Scores, probe_nll, run_tasks
from mrt_plugin.evaluation.held_out import ResponseNLL, response_nll
from mrt_plugin.evaluation.result import Key, ReferenceMeans, Sample, order
from mrt_plugin.evaluation.truth import Truth, TruthDistance, distances, mode_scores
from mrt_plugin.groups import prompt_key
from mrt_plugin.groups.messages import response_text, units
from mrt_plugin.groups.sources import open_source
from mrt_plugin.groups.write import spelled
from mrt_plugin.models.log_likelihood import Model, worse_than_guessing
from mrt_plugin.models.named_model import NamedModel
from mrt_plugin.planning.paired import Measured
from mrt_plugin.planning.progress import Progress, counting
from mrt_plugin.sampling.local import LocalModel
from mrt_plugin.sampling.options import LocalOptions, Sampler
from mrt_plugin.sampling.run import sample_pool
from mrt_plugin.scoring.cosine import cosines, diversity
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.scoring.judge import Judge
from mrt_plugin.scoring.scores import Scorer, score_columns, scorer_list

NAN = float("nan")


@dataclass
class How:
    """Settings of the measurement, the same for all models.

    Example:

    ```python
    from pathlib import Path

    from mrt_plugin.evaluation import How, load_checker
    from mrt_plugin.scoring import load_embedder

    how = How(Path("evaluation"), m=8, embedder=load_embedder("lexical"), checker=load_checker("numeric"))
    ```
    """

    folder: Path
    """Folder with one file of samples per model, and with the journals for resuming a stopped run."""
    m: int = 16
    """Samples per prompt; 0 for none."""
    at: Sequence[int] | None = None
    """Numbers of samples to report at; by default powers of two."""
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    endpoint: Callable[[str], Sampler] | None = None
    """Function from a model's name to the endpoint that serves it; None for local models."""
    address: str | None = None
    """Address of the endpoint, for the command that is suggested next."""
    partial: bool = False
    """Continue with the available draws if some failed."""
    embedder: Embedder | None = None
    scorer: Scorer | None = None
    score_cache: str | Path | None = None
    checker: Checker | None = None
    judge: Judge | None = None
    """Compares samples with the baseline's, or a single model's with references."""
    judge_samples: int = 1
    """Samples per prompt that the judge compares."""
    local: LocalOptions = field(default_factory=LocalOptions)
    """How models on this machine are loaded."""
    tokenizer: str | None = None
    max_length: int | None = None
    """Maximum tokens of a prompt with one reference in the held-out NLL; by default the model's positions."""
    truth: str | Path | None = None
    """File with all right responses to each prompt and their probabilities, as `read_truth` reads it."""
    probe: bool = True
    """Whether to measure the probe of general texts."""
    tasks: Sequence[str] = ()
    task_manager: Any = None
    task_limit: int | None = None
    task_chat: bool = False
    """Whether the questions of tasks are put in the chat template."""
    task_code: bool = False
    """Whether tasks may run code that the model writes."""


@dataclass(frozen=True)
class General:
    """General ability: the loss on the probe of general texts, and the scores of tasks."""

    probe: Measured | None = None
    tasks: Scores = field(default_factory=dict)


@dataclass
class Subject:
    """Measurements of one model."""

    model: NamedModel
    measured: dict[Key, Measured] = field(default_factory=dict)
    references: ResponseNLL | None = None
    modes: list[np.ndarray] | None = None
    """Log-probability of each right response of each prompt, if the truth is known."""
    samples: list[list[Sample]] | None = None
    general: General = field(default_factory=General)
    before: General | None = None
    """The same model with its adapter off; None if it has none."""
    notes: list[str] = field(default_factory=list)

    @property
    def ordered(self) -> list[tuple[Key, Measured]]:
        return sorted(self.measured.items(), key=lambda item: order(item[0]))


def measure_subject(
    model: NamedModel, cases: Sequence[Case], how: How, progress: Progress, truths: Sequence[Truth] = ()
) -> Subject:
    """Measure one model. It is loaded once and released at the end. `truths` are those of the cases, or none."""
    subject = Subject(model)
    sampler: Sampler | None = None
    local = None
    if model.path is not None and how.endpoint is not None:
        sampler = how.endpoint(model.path)
    elif model.path is not None:
        sampler = local = LocalModel(model.path, model.adapter, tokenizer=how.tokenizer, **asdict(how.local))
        local.loaded = local.load()
        _measure_likelihoods(subject, *local.loaded, cases, how, progress)
        if truths:
            _measure_truth(subject, *local.loaded, truths, progress)
    if model.pool is not None:
        subject.samples = read_samples(model.pool, cases)
    elif how.m and sampler is not None:
        pool = how.folder / f"{model.file_name}.jsonl"
        report = sample_pool(
            dataset_of(cases),
            sampler,
            pool,
            n=how.m,
            settings=how.settings,
            keep_cut_off=True,
            partial=how.partial,
            progress=lambda done, total: progress(f"{model.name}: samples", done, total),
        )
        subject.samples = read_samples(pool, cases)
        if report.rejected:
            what = f"{report.rejected:,} prompts were rejected by the endpoint, and have no samples"
            subject.notes.append(f"{model.name}: {what} ({report.first_rejection})")
    if local is not None:  # release the memory for the next model
        local.loaded = None
        gc.collect()
        torch.cuda.empty_cache()
    if subject.samples is not None:
        measure_samples(subject, subject.samples, cases, how, progress)
    return subject


def share_references(subjects: Sequence[Subject]) -> int:
    """Compute the NLL of every model on the references that fit all models. Return the number of the others."""
    able = [(subject, subject.references) for subject in subjects if subject.references is not None]
    if not able:
        return 0
    common = np.logical_and.reduce([references.fits for _, references in able])
    whose = "the NLL" if len(able) == 1 else "every model's NLL"
    for subject, references in able:
        names: tuple[Key, Key] = (("nll_per_token", None), ("nll_per_response", None))
        subject.measured.update(zip(names, references.measured(common), strict=True))
        too_long = int((~references.fits).sum())
        if too_long:
            rests = f"left out of {whose}, which rests on {int(common.sum()):,} of {len(common):,}."
            what = f"{too_long:,} references do not fit {references.max_length:,} tokens"
            subject.notes.append(f"{subject.model.name}: {what} and are {rests}")
    return int((~common).sum())


def same_tokens(one: Subject, other: Subject) -> bool:
    """Return whether both models split the references of each prompt into the same number of tokens."""
    found = [subject.measured.get(("nll_per_token", None)) for subject in (one, other)]
    if found[0] is None or found[1] is None:
        return False
    both = found[0].known & found[1].known
    return np.array_equal(found[0].weights[both], found[1].weights[both])


def _measure_likelihoods(
    subject: Subject, model: Model, encoder: Encoder, cases: Sequence[Case], how: How, progress: Progress
) -> None:
    """Measure what needs the model's probabilities: the held-out NLL, the probe and the tasks."""
    name, total = subject.model.name, sum(len(case.references) for case in cases)
    if total:
        limit = how.max_length or model.config.to_dict().get("max_position_embeddings")
        groups = ({"prompt": case.prompt, "responses": case.references} for case in cases)
        advance = counting(progress, f"{name}: held-out NLL", total)
        found = subject.references = response_nll(model, encoder, groups, max_length=limit, progress=advance)
        if not np.isfinite(found.nll).all():
            raise ValueError(f"{name}: the loss is not finite on some reference. Load the model in another precision.")
        if found.fits.any():
            warning = worse_than_guessing(float(found.nll.sum() / found.tokens[found.fits].sum()), model)
            if warning:
                subject.notes.append(f"{name}: {warning}")

    def measure() -> General:
        tokenizer, scores = encoder.tokenizer, Scores()
        probe = probe_nll(model, tokenizer) if how.probe else None
        if how.tasks:
            allowed = {"chat": how.task_chat, "run_code": how.task_code}
            scores = run_tasks(model, tokenizer, how.tasks, how.task_manager, how.task_limit, **allowed)
        return General(probe, scores)

    subject.general = measure()
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            subject.before = measure()
    for stage, measured in (("general probe", how.probe), ("tasks", how.tasks)):
        if measured:
            progress(f"{name}: {stage}", 1, 1)


def _measure_truth(
    subject: Subject, model: Model, encoder: Encoder, truths: Sequence[Truth], progress: Progress
) -> None:
    """Measure the exact distance of a model to the truth of each prompt."""
    total = sum(len(truth.modes) for truth in truths)
    advance = counting(progress, f"{subject.model.name}: truth", total)
    subject.modes = mode_scores(model, encoder, truths, progress=advance)
    found = distances(subject.modes, truths)
    for column, field_ in enumerate(fields(TruthDistance)):
        subject.measured[f"truth_{field_.name}", None] = Measured.mean(found[:, column])


def read_samples(pool: Any, cases: Sequence[Case]) -> list[list[Sample]]:
    """Read the samples of each case, in the order of the draws, from a pool by `mrt sample` or from any groups.

    In an extended pool (`mrt sample --extend`), only the draws of the last model count as samples.
    """
    problems, rows = open_source(pool)
    found: dict[str, list[Sample]] = {}
    for place, row in rows:
        if row.get("prompt") is None or not isinstance(row.get("responses"), list):
            problems.add(place, "responses", "samples are rows with `prompt` and `responses`, as mrt sample writes.")
            continue
        drawn = sorted(_draws(row), key=lambda draw: draw[0])
        samples = found.setdefault(prompt_key(row["prompt"]), [])
        samples += [sample for _, model, sample in drawn if model == drawn[-1][1]]
    keys = [prompt_key(case.prompt) for case in cases]
    if not any(key in found for key in keys):
        problems.fail(f"it has samples for none of the {len(cases):,} prompts: sample the prompts of this data.")
    problems.raise_any()
    return [found.get(key, []) for key in keys]


def _draws(row: dict[str, Any]) -> Iterator[tuple[int, str | None, Sample]]:
    """Yield a row's draws with their number and model, also the cut-off ones that `mrt sample` stores separately."""
    count = len(row["responses"])
    reasons, about = row.get("finish_reasons") or [None] * count, row.get("samples") or [{}] * count
    for place, (response, how) in enumerate(zip(row["responses"], about, strict=True)):
        if how is not None:
            cut_off = Draw("", reasons[place]).ending == "cut off"
            yield how.get("draw", place), how.get("model"), Sample(response_text(response), cut_off)
    for place, sample in enumerate(row.get("truncated") or [], start=count):
        yield sample.get("draw", place), sample.get("model"), Sample(sample["text"], True)


def add_rewards(
    cases: Sequence[Case], samples: Sequence[list[Sample]], scorer: Scorer, score_cache: str | Path | None = None
) -> None:
    """Compute the reward of every sample with one scorer."""
    if len(scorer_list(scorer)) != 1:
        raise ValueError(f"scorer={scorer!r}: an evaluation takes one scorer. Run it once for each.")
    sampled = [(case, some) for case, some in zip(cases, samples, strict=True) if some]
    if sampled:
        groups = dataset_of([case for case, _ in sampled], [[one.text for one in some] for _, some in sampled])
        ((_, columns),) = score_columns(groups, scorer, score_cache=score_cache).items()
        for (_, some), given in zip(sampled, columns["scores"], strict=True):
            for one, reward in zip(some, given, strict=True):
                one.reward = float(reward)


def dataset_of(cases: Sequence[Case], responses: list[list[str]] | None = None) -> Dataset:
    """Return ids, prompts and responses. If some prompts are messages, all are."""
    prompts, string = [case.prompt for case in cases], Value("string")
    texts = all(isinstance(prompt, str) for prompt in prompts)
    if not texts:
        prompts = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in prompts]
    features: dict[str, Any] = {"id": string, "prompt": string if texts else List(Json())}
    rows: dict[str, Any] = {"id": [case.id for case in cases], "prompt": spelled(prompts)}
    if responses is not None:
        features["responses"], rows["responses"] = List(string), responses
    return Dataset.from_dict(rows, features=Features(features))


def expected_best(values: np.ndarray, m: int) -> np.ndarray:
    """Return the largest of m values, averaged over all ways to choose m of n: [...] for values [..., n].

    In rising order, the j-th value is the largest in C(j-1, m-1) of the C(n, m) subsets. For values of 0 and 1 this is
    pass@k with k = m (arXiv 2107.03374, equation 1).
    """
    n = values.shape[-1]
    if not 1 <= m <= n:
        raise ValueError(f"The best of m={m} cannot be computed from {n} samples: m must be between 1 and {n}.")
    subsets = math.comb(n, m)
    weights = np.array([math.comb(rank, m - 1) / subsets for rank in range(n)])
    return np.asarray(np.sort(values, axis=-1) @ weights)


def levels(most: int, asked: Sequence[int] | None = None) -> list[int]:
    """Return the numbers of samples to report at, up to `most`: those `asked` for, or powers of two and `most`."""
    every = asked or [2**power for power in range(most.bit_length())] + [most]
    return sorted({m for m in every if 1 <= m <= most})


def closeness(references: Sequence[str], samples: Sequence[str], embedder: Embedder) -> tuple[np.ndarray, float]:
    """Return the cosines [R, n] of one prompt's references and samples, and the diversity of the samples."""
    texts = list(dict.fromkeys([*references, *samples]))
    vectors = embedder(texts) if texts else np.zeros((0, 1))
    place = {text: index for index, text in enumerate(texts)}
    known, drawn = (vectors[[place[text] for text in some]] for some in (references, samples))
    near = cosines(known, drawn) if len(known) and len(drawn) else np.zeros((len(known), len(drawn)))
    return near, diversity(drawn)


def reference_means(cases: Sequence[Case], embedder: Embedder | None) -> ReferenceMeans | None:
    """Measure the references against each other. Their coverage is that of R - 1 draws from their source."""
    texts = [case.texts for case in cases if case.references]
    if not texts:
        return None
    length = float(np.mean([_mean([len(units(text)) for text in some]) for some in texts]))
    several = [some for some in texts if len(some) > 1]
    if embedder is None or not several:
        return ReferenceMeans(length)
    found = [closeness(some, some, embedder) for some in several]
    for near, _ in found:
        np.fill_diagonal(near, -np.inf)
    coverages, diversities = [near.max(axis=1).mean() for near, _ in found], [spread for _, spread in found]
    return ReferenceMeans(length, float(np.mean(coverages)), float(np.mean(diversities)))


def measure_samples(
    subject: Subject, samples: list[list[Sample]], cases: Sequence[Case], how: How, progress: Progress
) -> None:
    """Compute the measures on samples. A prompt with fewer than m samples has no value at m."""
    name, texts = subject.model.name, [[one.text for one in some] for some in samples]
    most = max(map(len, texts), default=0)
    at = levels(most, how.at)
    beyond = [str(m) for m in how.at or () if m > most]
    if beyond:
        subject.notes.append(f"{name}: no prompt has more than {most} samples, so nothing at M = {', '.join(beyond)}.")

    def put(measure: str, values: Iterable[float], m: int | None = None) -> None:
        subject.measured[measure, m] = Measured.mean(np.array(list(values)))

    put("length", (_mean([len(units(text)) for text in some]) for some in texts))
    if how.embedder is not None:
        if how.embedder.prepare is not None:
            how.embedder.prepare([*case.texts, *some] for case, some in zip(cases, texts, strict=True))
        advance, found = counting(progress, f"{name}: coverage", len(cases)), []
        for case, some in zip(cases, texts, strict=True):
            found.append(closeness(case.texts, some, how.embedder))
            advance(1)
        for m in at:
            put("coverage", (best_of(near, m) for near, _ in found), m)
        put("alignment", (_mean(near.max(axis=0)) if near.size else NAN for near, _ in found))
        put("diversity", (spread for _, spread in found))
    if how.scorer is not None:
        add_rewards(cases, samples, how.scorer, how.score_cache)
        rewards = [np.array([one.reward for one in some], np.float64) for some in samples]
        put("reward", map(_mean, rewards))
        for m in [m for m in at if m > 1]:  # the best of 1 equals the mean
            put("best_reward", (best_of(row, m) for row in rewards), m)
    if how.checker is not None:
        advance = counting(progress, f"{name}: checks", len(cases))
        for case, drawn in zip(cases, samples, strict=True):
            for one in drawn:
                one.right = how.checker(case, one.text)
            advance(1)
        right = [np.array([one.right for one in some], np.float64) for some in samples]  # NaN where unknown
        for m in at:
            put("pass", (NAN if np.isnan(row).any() else best_of(row, m) for row in right), m)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else NAN


def best_of(values: np.ndarray, m: int) -> float:
    """Return the mean of the expected best of m, for values [..., n]; NaN if there are fewer than m."""
    return float(expected_best(values, m).mean()) if values.size and m <= values.shape[-1] else NAN
