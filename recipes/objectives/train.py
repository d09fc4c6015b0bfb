"""Train one run of the comparison, and measure it on the held-out prompts."""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback

from mrt_plugin.groups import load_groups
from mrt_plugin.planning.progress import quiet
from mrt_plugin.trainer import MultiResponseSFTConfig, MultiResponseSFTTrainer
from recipes.objectives.world import POOL, base_folder, draw_data, load_base, measure


@dataclass(frozen=True, order=True)
class Run:
    """One training run. Equal runs give equal numbers."""

    objective: str
    """nll, dft, gem, pro; `none` measures the base model."""
    selector: str
    k: int
    prompts: int
    steps: int
    """Optimizer steps of 8 prompts each."""
    learning_rate: float
    seed: int
    n: int = POOL
    """Candidates per prompt: the k responses are chosen of these."""
    subset: str = ""
    """The subset of the training prompts that the first `prompts` are taken of: words joined by `+`, or `@FILE` with
    ids. By default all."""


def train(run: Run, bases: Path) -> dict[str, Any]:
    """Train a run with LoRA on the seed's base model, and return its record: the run, the measures, the seconds."""
    data = draw_data(run.seed)
    model, tokenizer = load_base(base_folder(run.seed, bases))
    began = time.perf_counter()
    if run.objective != "none":
        groups = load_groups(Dataset.from_list(subset_of(run, data.groups)))
        with quiet(), tempfile.TemporaryDirectory() as folder:
            trainer = MultiResponseSFTTrainer(
                model=model,
                args=_config(run, folder),
                train_dataset=groups,
                processing_class=tokenizer,
                peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            model = trainer.model
    seconds = time.perf_counter() - began
    found = measure(model.eval(), tokenizer, data.held_out)
    rounded = {name: round(value, 6) for name, value in asdict(found).items()}
    return {**asdict(run), **rounded, "seconds": round(seconds, 2)}


def run_all(runs: Iterable[Run], path: Path, progress: Callable[[str, int, int], None]) -> None:
    """Train the runs that the JSONL file lacks, seed by seed, and add a line after each."""
    wanted = sorted(set(runs), key=lambda run: (run.seed, run))
    records = read(path)
    done = {run_of(record) for record in records}
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(wanted):
        if run not in done:
            progress(f"{run.objective}, K = {run.k}, seed {run.seed}", number, len(wanted))
            record = train(run, path.parent / "bases")
            with path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")
    progress("done", len(wanted), len(wanted))


def read(path: Path) -> list[dict[str, Any]]:
    """Read the records of a file; none if there is no file. A line that a stopped run left half-written is dropped."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def run_of(record: Mapping[str, Any]) -> Run:
    """Return the run of a record."""
    return Run(**{name: record[name] for name in Run.__dataclass_fields__})


def subset_of(run: Run, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups that a run trains on.

    A group is of a subset if a word of its id (subject-weather-occasion) is in the subset's name, joined by `+`, or if
    its id is a line of the file after `@`.

    Raises:
        ValueError: if the subset has fewer than `run.prompts`.
    """
    if run.subset.startswith("@"):
        by_id = {group["id"]: group for group in groups}
        return [by_id[name] for name in Path(run.subset[1:]).read_text(encoding="utf-8").split()][: run.prompts]
    words = set(run.subset.split("+"))
    chosen = [group for group in groups if not run.subset or not words.isdisjoint(group["id"].split("-"))]
    if len(chosen) < run.prompts:
        raise ValueError(f"{run.subset!r} has {len(chosen)} prompts: fewer than {run.prompts}.")
    return chosen[: run.prompts]


def _config(run: Run, folder: str) -> MultiResponseSFTConfig:
    return MultiResponseSFTConfig(
        output_dir=folder,
        objective=run.objective,  # type: ignore[arg-type]  # `none` is not trained
        selector=run.selector,
        k=run.k,
        n=run.n,
        max_length=256,
        row_length=1024,
        prefix_check=False,  # the tests prove the same model
        per_device_train_batch_size=8,
        max_steps=run.steps,
        learning_rate=run.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.03,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=run.seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
