"""Measure one model of an evaluation on each prompt."""

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from mrt_plugin.encoding import Encoder
from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.checkers import Checker
from mrt_plugin.evaluation.closeness import NAN, Closeness, closeness, expected_best, levels
from mrt_plugin.evaluation.forgetting import ProbeNLL, probe_nll
from mrt_plugin.evaluation.harness import Scores, run_tasks
from mrt_plugin.evaluation.held_out import PromptNLL, ResponseNLL, response_nll
from mrt_plugin.evaluation.result import Key, order
from mrt_plugin.evaluation.samples import Samples, draw_samples, read_samples, rewards, sample_files
from mrt_plugin.groups.text import units
from mrt_plugin.models.log_likelihood import Model, worse_than_guessing
from mrt_plugin.models.named_model import NamedModel
from mrt_plugin.planning.paired import Measured
from mrt_plugin.sampling.local import LocalModel
from mrt_plugin.sampling.options import LocalOptions, SamplingSettings
from mrt_plugin.sampling.settings import Sampler
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.scoring.scores import Scorer

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the total number of steps."""


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
    partial: bool = False
    """Continue with the available draws if some failed."""
    embedder: Embedder | None = None
    scorer: Scorer | None = None
    score_cache: str | Path | None = None
    checker: Checker | None = None
    local: LocalOptions = field(default_factory=LocalOptions)
    """How models on this machine are loaded."""
    tokenizer: str | None = None
    max_length: int | None = None
    """Maximum tokens of a prompt with one reference in the held-out NLL; by default the model's positions."""
    probe: bool = True
    """Whether to measure the probe of general texts."""
    tasks: Sequence[str] = ()
    task_manager: Any = None
    task_limit: int | None = None


@dataclass
class Subject:
    """Measurements of one model."""

    model: NamedModel
    measured: dict[Key, Measured] = field(default_factory=dict)
    references: ResponseNLL | None = None
    """NLL of every reference that fits this model."""
    nll: PromptNLL | None = None
    """NLL of the references that fit all models; set by `share_references`."""
    samples: list[Samples] | None = None
    right: list[list[bool | None]] | None = None
    rewards: list[np.ndarray] | None = None
    probe: ProbeNLL | None = None
    base_probe: ProbeNLL | None = None
    """Probe of the same model with its adapter off."""
    tasks: Scores = field(default_factory=dict)
    base_tasks: Scores = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ordered(self) -> list[tuple[Key, Measured]]:
        """The measures in the order in which they are shown."""
        return sorted(self.measured.items(), key=lambda item: order(item[0]))


def measure_subject(model: NamedModel, cases: Sequence[Case], how: How, progress: Progress) -> Subject:
    """Measure one model. It is loaded once and released at the end.

    Raises:
        ValueError: if the tokenizer or the adapter does not belong to the model, or its loss is not finite.
        Unfinished, EndpointError: if some samples could not be drawn; the samples drawn are saved.
    """
    subject = Subject(model)
    sampler: Sampler | None = None
    local = None
    if model.path is not None and how.endpoint is not None:
        sampler = how.endpoint(model.path)
    elif model.path is not None:
        sampler = local = LocalModel(model.path, model.adapter, tokenizer=how.tokenizer, **asdict(how.local))
        local.loaded = local.load()
        _measure_likelihoods(subject, *local.loaded, cases, how, progress)
    if model.pool is not None:
        subject.samples = read_samples(model.pool, cases)
    elif how.m and sampler is not None:
        subject.samples, report = draw_samples(
            cases,
            sampler,
            sample_files(how.folder, model)[0],
            how.m,
            how.settings,
            partial=how.partial,
            progress=lambda done, total: progress(f"{model.name}: samples", done, total),
        )
        if report.rejected:
            subject.notes.append(
                f"{model.name}: {report.rejected:,} prompts were rejected by the endpoint, and have no samples "
                f"({report.first_rejection})"
            )
    if local is not None:  # release the memory for the next model
        local.loaded = None
        gc.collect()
        torch.cuda.empty_cache()
    if subject.samples is not None:
        _measure_samples(subject, subject.samples, cases, how, progress)
    return subject


def share_references(subjects: Sequence[Subject]) -> int:
    """Compute the held-out NLL of every model on the same references: those that fit all models.

    Returns:
        The number of references left out.
    """
    able = [(subject, subject.references) for subject in subjects if subject.references is not None]
    if not able:
        return 0
    common = np.logical_and.reduce([references.fits for _, references in able])
    whose = "the NLL" if len(able) == 1 else "every model's NLL"
    for subject, references in able:
        subject.nll = found = references.per_prompt(common)
        subject.measured["nll_per_token", None] = Measured(
            np.where(found.pairs > 0, found.nll, np.nan), found.tokens.astype(np.float64)
        )
        with np.errstate(invalid="ignore"):
            subject.measured["nll_per_response", None] = Measured.mean(found.nll / found.pairs)
        too_long = int((~references.fits).sum())
        if too_long:
            subject.notes.append(
                f"{subject.model.name}: {too_long:,} references do not fit {references.max_length:,} tokens "
                f"and are left out of {whose}, which rests on {int(common.sum()):,} of {len(common):,}."
            )
    return int((~common).sum())


def same_tokens(one: Subject, other: Subject) -> bool:
    """Return whether both models split the references of each prompt into the same number of tokens."""
    if one.nll is None or other.nll is None:
        return False
    both = (one.nll.pairs > 0) & (other.nll.pairs > 0)
    return bool((one.nll.tokens[both] == other.nll.tokens[both]).all())


def _measure_likelihoods(
    subject: Subject, model: Model, encoder: Encoder, cases: Sequence[Case], how: How, progress: Progress
) -> None:
    """Measure what needs the model's probabilities: the held-out NLL, the probe and the tasks."""
    name, tokenizer = subject.model.name, encoder.tokenizer
    total, done = sum(len(case.references) for case in cases), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(f"{name}: held-out NLL", done, total)

    if total:
        limit = how.max_length or model.config.to_dict().get("max_position_embeddings")
        groups = ({"prompt": case.prompt, "responses": case.references} for case in cases)
        found = response_nll(model, encoder, groups, max_length=limit, progress=advance)
        if not np.isfinite(found.nll).all():
            raise ValueError(f"{name}: the loss is not finite on some reference. Load the model in another precision.")
        subject.references = found
        if found.fits.any():
            warning = worse_than_guessing(float(found.nll.sum() / found.tokens[found.fits].sum()), model)
            if warning:
                subject.notes.append(f"{name}: {warning}")

    def measure() -> tuple[ProbeNLL | None, Scores]:
        probe = probe_nll(model, tokenizer) if how.probe else None
        if not how.tasks:
            return probe, {}
        return probe, run_tasks(model, tokenizer, how.tasks, how.task_manager, limit=how.task_limit)

    subject.probe, subject.tasks = measure()
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            subject.base_probe, subject.base_tasks = measure()
    for stage, measured in (("general probe", how.probe), ("tasks", how.tasks)):
        if measured:
            progress(f"{name}: {stage}", 1, 1)


def _measure_samples(
    subject: Subject, samples: Sequence[Samples], cases: Sequence[Case], how: How, progress: Progress
) -> None:
    """Compute the measures on samples. A prompt with fewer than m samples has no value at m."""
    name = subject.model.name
    most = max((len(one.texts) for one in samples), default=0)
    at = levels(most, how.at)
    beyond = [str(m) for m in how.at or () if m > most]
    if beyond:
        subject.notes.append(f"{name}: no prompt has more than {most} samples, so nothing at M = {', '.join(beyond)}.")

    def put(measure: str, values: Iterable[float], m: int | None = None) -> None:
        subject.measured[measure, m] = Measured.mean(np.array(list(values)))

    put("length", (_mean([len(units(text)) for text in one.texts]) for one in samples))
    if how.embedder is not None:
        if how.embedder.prepare is not None:
            how.embedder.prepare([*case.texts, *one.texts] for case, one in zip(cases, samples, strict=True))
        found: list[Closeness] = []
        for number, (case, one) in enumerate(zip(cases, samples, strict=True)):
            found.append(closeness(case.texts, one.texts, how.embedder))
            progress(f"{name}: coverage", number + 1, len(cases))
        for m in at:
            put("coverage", (near.coverage(m) for near in found), m)
        put("alignment", (near.alignment for near in found))
        put("diversity", (near.diversity for near in found))
    if how.scorer is not None:
        subject.rewards = rewards(cases, samples, how.scorer, score_cache=how.score_cache)
        put("reward", map(_mean, subject.rewards))
        for m in [m for m in at if m > 1]:  # the best of 1 equals the mean
            put("best_reward", (_best(row, m) for row in subject.rewards), m)
    if how.checker is not None:
        subject.right = []
        for number, (case, one) in enumerate(zip(cases, samples, strict=True)):
            subject.right.append([how.checker(case, text) for text in one.texts])
            progress(f"{name}: checks", number + 1, len(cases))
        for m in at:
            put("pass", (NAN if None in row else _best(np.array(row, np.float64), m) for row in subject.right), m)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else NAN


def _best(values: np.ndarray, m: int) -> float:
    return float(expected_best(values, m)) if len(values) >= m else NAN
