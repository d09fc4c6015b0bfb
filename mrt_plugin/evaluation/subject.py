"""Measure one model of an evaluation on each prompt."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from mrt_plugin.encoding import Encoder
from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.checkers import Checker
from mrt_plugin.evaluation.forgetting import Scores, probe_nll, run_tasks
from mrt_plugin.evaluation.held_out import ResponseNLL, response_nll
from mrt_plugin.evaluation.result import Key, Sample, order
from mrt_plugin.evaluation.samples import dataset_of, measure_samples, read_samples, sample_files
from mrt_plugin.models.log_likelihood import Model, worse_than_guessing
from mrt_plugin.models.named_model import NamedModel
from mrt_plugin.planning.paired import Measured
from mrt_plugin.planning.progress import Progress, counting
from mrt_plugin.sampling.local import LocalModel
from mrt_plugin.sampling.options import LocalOptions, SamplingSettings
from mrt_plugin.sampling.run import sample_pool
from mrt_plugin.sampling.settings import Sampler
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.scoring.scores import Scorer


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


@dataclass(frozen=True)
class General:
    """What measures forgetting: the probe of general texts and the scores of tasks."""

    probe: Measured | None = None
    tasks: Scores = field(default_factory=dict)


@dataclass
class Subject:
    """Measurements of one model."""

    model: NamedModel
    measured: dict[Key, Measured] = field(default_factory=dict)
    references: ResponseNLL | None = None
    samples: list[list[Sample]] | None = None
    general: General = field(default_factory=General)
    before: General | None = None
    """The same model with its adapter off; None if it has none."""
    notes: list[str] = field(default_factory=list)

    @property
    def ordered(self) -> list[tuple[Key, Measured]]:
        return sorted(self.measured.items(), key=lambda item: order(item[0]))


def measure_subject(model: NamedModel, cases: Sequence[Case], how: How, progress: Progress) -> Subject:
    """Measure one model. It is loaded once and released at the end."""
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
        pool = sample_files(how.folder, model)[0]
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
            subject.notes.append(
                f"{model.name}: {report.rejected:,} prompts were rejected by the endpoint, and have no samples "
                f"({report.first_rejection})"
            )
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
            subject.notes.append(
                f"{subject.model.name}: {too_long:,} references do not fit {references.max_length:,} tokens "
                f"and are left out of {whose}, which rests on {int(common.sum()):,} of {len(common):,}."
            )
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
        tokenizer, limit = encoder.tokenizer, how.task_limit
        probe = probe_nll(model, tokenizer) if how.probe else None
        return General(probe, run_tasks(model, tokenizer, how.tasks, how.task_manager, limit) if how.tasks else {})

    subject.general = measure()
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            subject.before = measure()
    for stage, measured in (("general probe", how.probe), ("tasks", how.tasks)):
        if measured:
            progress(f"{name}: {stage}", 1, 1)
