"""Check what an Axolotl recipe will do: whether it is valid, what each layout trains on, and its estimated memory."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from transformers import AutoConfig

from mrt_plugin.attention import NotShareable, resolve_backend
from mrt_plugin.doctor.keys import recipe_slips
from mrt_plugin.doctor.machine import Device, find_device
from mrt_plugin.doctor.measure import MeasuredStep, measure_recipe
from mrt_plugin.doctor.memory import MemoryEstimate, Method, estimate_memory
from mrt_plugin.groups.overlap import overlap_problem
from mrt_plugin.layout.collator import GroupedResponseCollator
from mrt_plugin.layout.group_row import COLUMNS
from mrt_plugin.layout.sharing import Sharing
from mrt_plugin.options import LayoutOptions
from mrt_plugin.trainer.layout_choice import WORTH_SHARING, draw_batches, sharing_of
from mrt_plugin.trainer.prepare import is_prepared, row_tokens

COUNTED = 20_000
"""Groups from which the saving of a dataset is counted, at most."""


@dataclass(frozen=True)
class DataCounts:
    """Counts of one part of the data. A row is a group, or a part of one that is too long."""

    rows: int
    pairs: int
    trained_tokens: int
    tokens_expanded: int
    """Tokens of one forward pass over all pairs."""
    sharing: Sharing
    """What sharing saves, in at most `COUNTED` groups."""

    @property
    def tokens_shared(self) -> int:
        """Tokens of one forward pass if micro-batches share as those that were counted do."""
        return round(self.tokens_expanded / self.ratio)

    @property
    def ratio(self) -> float:
        return self.sharing.ratio


@dataclass
class RecipeReport:
    """Findings of `inspect_recipe`. If a step fails, `problems` says why and the fields of later steps are empty."""

    recipe: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: str | None = None
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    train: DataCounts | None = None
    held_out: DataCounts | None = None
    steps: int | None = None
    layout: str | None = None
    """The expected layout. Under `layout: auto` the proof on the loaded model makes the final decision."""
    backend: str | None = None
    batch: dict[str, tuple[int, int]] = field(default_factory=dict)
    """For each layout: number of rows, and tokens per row, of the largest micro-batch."""
    memory: dict[str, MemoryEstimate] = field(default_factory=dict)
    measured: MeasuredStep | None = None
    device: Device | None = None

    def as_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        for layout, estimate in self.memory.items():
            plain["memory"][layout]["total"] = estimate.total
        for part, counts in (("train", self.train), ("held_out", self.held_out)):
            if counts is not None:
                plain[part] |= {"tokens_shared": counts.tokens_shared, "ratio": counts.ratio}
        return plain


def inspect_recipe(
    recipe: str | Path, *, measure: bool = False, say: Callable[[str], None] = lambda stage: None
) -> RecipeReport:
    """Check an Axolotl recipe and its data as `axolotl train` reads them, without loading the model or writing to
    the recipe's output folders. With `measure`, also run a step in another process, and tell `say` its stages."""
    recipe = Path(recipe)
    if not recipe.is_file():
        raise FileNotFoundError(f"{recipe} is not a file: give the path of an Axolotl recipe.")
    device, stage = find_device(), "recipe"
    report = RecipeReport(str(recipe), device=device)
    with _quiet(report), tempfile.TemporaryDirectory() as scratch:
        try:
            from axolotl.cli.config import load_cfg
            from axolotl.common.datasets import load_datasets
            from axolotl.loaders import load_tokenizer

            from mrt_plugin.axolotl.trainer import foresee_batches, foresee_steps

            report.problems += [f"recipe: {slip}" for slip in recipe_slips(recipe)]
            elsewhere = {"output_dir": scratch, "dataset_prepared_path": scratch}
            cfg = load_cfg(str(recipe), **elsewhere)
            layout = "auto" if cfg.mrt is None else cfg.mrt.layout
            if layout == "expanded":  # both layouts are counted on rows in shared-prefix form
                cfg = load_cfg(str(recipe), **elsewhere, mrt__layout="auto")
            report.model, report.method = str(cfg.base_model), cfg.adapter or "full fine-tuning"
            if cfg.mrt is None:  # the plugin sets its defaults there
                raise ValueError("the plugin is not loaded. Add `plugins: [mrt_plugin.axolotl.MultiResponsePlugin]`.")
            report.options = {**cfg.mrt, "layout": layout}
            stage = "data"
            meta = load_datasets(cfg=cfg)
            row_length = report.options.get("row_length") or cfg.sequence_len
            sharing = LayoutOptions(row_length=row_length, row_packing=cfg.mrt.row_packing)
            report.train = count(meta.train_dataset, sharing, lambda rows: foresee_batches(cfg, rows))
            form = "expanded" if layout == "expanded" else "shared_prefix"
            report.steps = foresee_steps(cfg, meta.train_dataset, form)
            if meta.eval_dataset is not None:
                size = cfg.eval_batch_size or cfg.micro_batch_size
                report.held_out = count(
                    meta.eval_dataset, sharing, lambda rows: draw_batches(len(rows), size, in_order=True)
                )
                if overlap := overlap_problem(meta.train_dataset, meta.eval_dataset):
                    report.problems.append(f"data: {overlap}")
            if not report.steps:
                report.problems.append(f"data: no optimizer step: num_epochs is {cfg.num_epochs}. Raise it.")
            collator = GroupedResponseCollator(load_tokenizer(cfg), row_length=row_length)
            for form in ("shared_prefix", "expanded"):
                report.batch[form] = largest_batch(meta.train_dataset, collator, form, cfg)
            stage = "model"
            _estimate(report, cfg, report.train.ratio, device.kind)
        except Exception as error:  # any failure is a finding for the user
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            report.problems.append(f"{stage}: {kind}{error}")
        if measure and report.steps:
            found = measure_recipe(recipe, Path(scratch), say)
            report.measured = found.step
            report.problems += [] if found.problem is None else [found.problem]
        elif measure:
            report.notes.append("--measure: not measured, as the recipe or its data cannot be used yet.")
    return report


def count(dataset: Dataset, options: LayoutOptions, draw: Callable[[Dataset], list[list[int]]]) -> DataCounts:
    """Count the rows, pairs and tokens of prepared rows, and what sharing saves in the micro-batches that `draw`
    returns. Raise ValueError for rows that are not groups."""
    if not is_prepared(dataset):
        raise ValueError("its rows are no groups: give a dataset `type: mrt_plugin.axolotl.<selector>`.")
    pairs = sum(numbers[-1] + 1 for numbers in dataset["segment_responses"])
    trained = sum(sum(label != -100 for label in labels) for labels in dataset["labels"])
    expanded = int(row_tokens(dataset, "expanded").sum())
    batches = draw(dataset)
    groups = accumulate(map(len, batches))
    counted = max(1, sum(number <= COUNTED for number in groups))
    return DataCounts(len(dataset), pairs, trained, expanded, sharing_of(dataset, options, batches[:counted]))


def largest_batch(dataset: Dataset, collator: GroupedResponseCollator, layout: str, cfg: Any) -> tuple[int, int]:
    """Return rows and tokens per row of the largest micro-batch: the longest groups, collated as in training."""
    if cfg.sample_packing:
        return cfg.micro_batch_size, cfg.sequence_len
    lengths = [len(tokens) for tokens in dataset["input_ids"]]
    longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])[: cfg.micro_batch_size]
    collator.layout, collator.packing = layout, layout == "shared_prefix"
    rows, tokens = collator([{name: dataset[i][name] for name in COLUMNS} for i in longest])["input_ids"].shape
    return rows, tokens


def _estimate(report: RecipeReport, cfg: Any, ratio: float, device: str) -> None:
    name = cfg.base_model_config or cfg.base_model
    config = AutoConfig.from_pretrained(name, trust_remote_code=bool(cfg.trust_remote_code))
    optimizer = str(cfg.optimizer or "adamw")
    two_moments = "adam" in optimizer or optimizer == "ademamix"
    # Others have one moment (SGD with momentum, Lion, Muon); Adafactor needs less.
    state = 2.0 if "8bit" in optimizer else 8.0 if two_moments else 4.0
    bits = 4 if cfg.load_in_4bit else 8 if cfg.load_in_8bit else None
    targets = "all-linear" if cfg.lora_target_linear else (cfg.lora_target_modules or "all-linear")
    rank, dtype = cfg.lora_r if cfg.adapter else None, cfg.torch_dtype or torch.float32
    method = Method(bits, rank, targets, dtype, state, bool(cfg.gradient_checkpointing))
    try:
        report.backend = resolve_backend(cfg.mrt.prefix_backend, config, device_type=device).name
        report.layout = report.options["layout"]
        if report.layout == "auto":
            report.layout = "shared_prefix" if ratio >= WORTH_SHARING else "expanded"
    except NotShareable as refusal:
        report.notes.append(str(refusal))
        report.layout = "expanded"
    for layout, (rows, tokens) in report.batch.items():
        report.memory[layout] = estimate_memory(config, method, rows=rows, length=tokens)


@contextmanager
def _quiet(report: RecipeReport) -> Iterator[None]:
    """Silence Axolotl's messages and progress bars, and collect the package's own warnings in the report, as notes or
    as problems if they are marked so."""
    for name, value in (("AXOLOTL_DO_NOT_TRACK", "1"), ("AXOLOTL_LOG_LEVEL", "ERROR"), ("LOG_LEVEL", "ERROR")):
        os.environ.setdefault(name, value)

    def keep(record: logging.LogRecord) -> None:
        note = record.getMessage()
        if vars(record).get("problem"):
            report.problems.append(f"data: {note}")
        elif note not in report.notes:  # train and held-out prompts often come from one file
            report.notes.append(note)

    ours, handler = logging.getLogger("mrt_plugin"), logging.Handler(logging.WARNING)
    handler.emit = keep  # type: ignore[method-assign]
    propagate, level = ours.propagate, ours.level
    ours.propagate = False
    ours.setLevel(logging.WARNING)
    ours.addHandler(handler)
    datasets.disable_progress_bars()
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        datasets.enable_progress_bars()
        ours.removeHandler(handler)
        ours.propagate = propagate
        ours.setLevel(level)
