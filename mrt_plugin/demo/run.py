"""The demo: QLoRA through Axolotl on K = 1 and on K = 4 responses per prompt, measured against a known truth.

A tiny chat model learns the format and the possible answers from another world, then the probabilities of this one
from a pool of N draws per prompt, of which each run keeps K. The runs have the same prompts, settings and steps.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from mrt_plugin.demo.modes import ModePrompt, draw_groups, mode_prompts, split_prompts
from mrt_plugin.demo.training import TrainingTime, axolotl_train
from mrt_plugin.encoding import Encoder, Pair
from mrt_plugin.evaluation.held_out import held_out_nll
from mrt_plugin.evaluation.truth import TruthDistance, distances, mode_scores, truth_distance
from mrt_plugin.groups.write import write_text
from mrt_plugin.models.load import load_model
from mrt_plugin.models.tiny_model import build_llama, build_tokenizer, pretrain, save
from mrt_plugin.planning.paired import LEVEL, Bootstrap, Measured
from mrt_plugin.planning.progress import Progress
from mrt_plugin.report import figure, legible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = "results.json"
POOL, HELD_OUT, MODEL = "pool.jsonl", "held_out.jsonl", "model"
TRUTH = "truth.jsonl"
"""Marks a folder as written by the demo, so that the next demo may replace it."""

HATCHES = ("", "//", "xx", "..")


@dataclass(frozen=True)
class DemoSettings:
    """The size of the demo's data and the length of its training."""

    seed: int = 0
    train_prompts: int = 160
    held_out_prompts: int = 160
    pool: int = 8
    """N, the number of draws per prompt."""
    k: tuple[int, ...] = (1, 4)
    epochs: int = 8
    """Chosen in favour of K = 1, whose distance to the truth is larger with 5 and with 12 epochs."""
    pretraining_steps: int = 250


QUICK = DemoSettings(train_prompts=24, held_out_prompts=16, epochs=1, pretraining_steps=20)
"""A short run to check that everything works. Its numbers are meaningless."""


@dataclass(frozen=True)
class Measures:
    """How far a model is from the truth, on the held-out prompts. The truth itself has the best values."""

    held_out_nll: float
    """In nats per token. That of the truth is the lowest expected value."""
    kl: float
    """KL(truth || model) in nats per response."""
    coverage: float
    elsewhere: float
    """The model's probability of a response that is not a mode."""


@dataclass(frozen=True)
class Intervals:
    """95% intervals of measures: a bootstrap over the held-out prompts. They leave out how much seeds differ."""

    held_out_nll: list[float] | None
    kl: list[float] | None
    coverage: list[float] | None


@dataclass(frozen=True)
class DemoRun:
    """The base model, or what one training run made of it, with its measures."""

    name: str
    k: int | None
    adapter: str | None
    seconds: TrainingTime | None
    held_out: Measures
    intervals: Intervals
    held_out_nll_per_response: float
    held_out_tokens: int
    kl_on_training_prompts: float
    coverage_on_training_prompts: float

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        if self.seconds is None:
            del found["seconds"]
        return found | found.pop("held_out")


@dataclass(frozen=True)
class DemoResults:
    """What the demo measured. `as_json` is its `results.json`."""

    settings: DemoSettings
    runs: list[DemoRun]
    truth: Measures
    kl_difference: float
    """KL of the last run minus that of the first trained one, on the same prompts."""
    kl_difference_interval: list[float] | None
    seconds: float

    @property
    def sentence(self) -> str:
        return describe(self.runs[1], self.runs[-1])

    def as_json(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "runs": [run.as_json() for run in self.runs],
            "truth": asdict(self.truth),
            "kl_difference": self.kl_difference,
            "kl_difference_interval": self.kl_difference_interval,
            "sentence": self.sentence,
            "seconds": self.seconds,
        }


def run_demo(folder: Path, settings: DemoSettings | None = None, progress: Progress = lambda *_: None) -> DemoResults:
    """Run the demo, and write all its files into `folder`."""
    import_module("matplotlib")  # fails before the work if it is missing
    settings = settings or DemoSettings()
    with whole_folder(folder, marker=TRUTH) as work:
        try:
            import_module("axolotl")
        except ModuleNotFoundError as missing:
            raise ValueError(
                "The demo trains with Axolotl, which is not installed: pip install 'mrt-plugin[axolotl,qlora,plots]'. "
                "With TRL alone: mrt init --demo --trl --gpu cpu --output train.py"
            ) from missing
        started = time.perf_counter()
        train, held_out, groups = write_data(work, settings)
        encoder = make_model(work, settings, lambda step: progress("base model", step, settings.pretraining_steps))
        trained: list[tuple[int, TrainingTime]] = []
        steps = settings.epochs * math.ceil(settings.train_prompts / 8)
        for k in settings.k:

            def forward(done: int, stage: str = f"axolotl train k{k}.yaml") -> None:
                progress(stage, done, steps)

            trained.append((k, axolotl_train(work, k, settings.epochs, settings.seed, forward)))
            forward(steps)
        transformers_logging.disable_progress_bar()
        runs: list[DemoRun] = []
        boot, kls = Bootstrap(len(held_out), settings.seed, LEVEL), list[Measured]()
        evaluated: list[tuple[int | None, TrainingTime | None]] = [(None, None), *trained]
        for kept, seconds in evaluated:
            adapter = None if kept is None else f"k{kept}"
            model = load_model(work / MODEL, adapter and work / adapter, load_in_4bit=True)
            per_token, per_response = held_out_nll(model, encoder, groups)
            assert per_token.value is not None, "every held-out prompt has responses"
            assert per_response.value is not None, "every held-out prompt has responses"
            seen, rows = (
                truth_distance(model, encoder, train),
                distances(mode_scores(model, encoder, held_out), held_out),
            )
            distance, (kl, _, coverage) = TruthDistance(*rows.mean(axis=0).tolist()), map(Measured.mean, rows.T)
            kls.append(kl)
            run = DemoRun(
                name="base model" if kept is None else f"K = {kept}",
                k=kept,
                adapter=adapter,
                seconds=seconds,
                held_out=Measures(per_token.value, distance.kl, distance.coverage, distance.elsewhere),
                intervals=Intervals(*map(boot.interval, (per_token, kl, coverage))),
                held_out_nll_per_response=per_response.value,
                held_out_tokens=int(per_token.weights.sum()),
                kl_on_training_prompts=seen.kl,
                coverage_on_training_prompts=seen.coverage,
            )
            runs.append(run)
            progress("evaluation", len(runs), len(evaluated))
        ideal = _measure_truth(groups, held_out, runs[0].held_out_tokens)
        gap, ends, _ = boot.difference(kls[-1], kls[1])
        assert gap is not None, "every held-out prompt has a KL"
        results = DemoResults(settings, runs, ideal, gap, ends, time.perf_counter() - started)
        plot(results, work / "results.png")
        shutil.rmtree(work / "prepared", ignore_errors=True)
        (work / RESULTS).write_text(json.dumps(results.as_json(), indent=2) + "\n", encoding="utf-8")
    return results


def describe(first: DemoRun, last: DemoRun) -> str:
    """Compare two training runs in sentences that can be read aloud."""
    before, after = first.held_out.kl, last.held_out.kl
    change = (after - before) / before
    way = "closer to" if change < 0 else "further from"
    return (
        f"On prompts it was not trained on, {last.k} responses per prompt instead of {first.k} brought the model "
        f"{abs(change):.0%} {way} the truth. Its KL from the truth is {after:.3f} instead of {before:.3f} nats. "
        "Both runs took the same number of optimizer steps."
    )


def write_data(work: Path, settings: DemoSettings) -> tuple[list[ModePrompt], list[ModePrompt], list[dict[str, Any]]]:
    """Write the pool, the held-out groups and the truth of both into `work`.

    Returns:
        The training prompts, the held-out prompts, and the groups of the held-out prompts.
    """
    train, rest = split_prompts(mode_prompts(settings.seed), settings.train_prompts, settings.seed)
    held_out = rest[: settings.held_out_prompts]
    pool, groups = (draw_groups(prompts, settings.pool, settings.seed) for prompts in (train, held_out))
    truth = [asdict(item) for item in train + held_out]
    for name, rows in ((POOL, pool), (HELD_OUT, groups), (TRUTH, truth)):
        write_text(work / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return train, held_out, groups


def make_model(work: Path, settings: DemoSettings, progress: Callable[[int], None]) -> Encoder:
    """Pretrain the base model on another world, save it as `MODEL` in the folder `work`, and return its encoder."""
    other_world = mode_prompts(settings.seed + 1000, sharpness=1.0)
    tokenizer = build_tokenizer([text for item in other_world for text in (item.prompt, *item.modes)])
    encoder = Encoder(tokenizer)
    random = np.random.default_rng([settings.seed, 3])

    def draw(step: int) -> list[Pair]:
        items = [other_world[index] for index in random.integers(len(other_world), size=64)]
        return [encoder.encode(item.prompt, str(random.choice(item.modes, p=item.probabilities))) for item in items]

    model = build_llama(tokenizer, settings.seed)
    pretrain(model, draw, steps=settings.pretraining_steps, progress=progress)
    save(model, tokenizer, work / MODEL)
    return Encoder(AutoTokenizer.from_pretrained(work / MODEL))


def _measure_truth(groups: list[dict[str, Any]], held_out: list[ModePrompt], tokens: int) -> Measures:
    chances = {item.prompt: dict(zip(item.modes, item.probabilities, strict=True)) for item in held_out}
    nll = sum(-math.log(chances[group["prompt"]][response]) for group in groups for response in group["responses"])
    return Measures(nll / tokens, kl=0.0, coverage=1.0, elsewhere=0.0)


@contextmanager
def whole_folder(folder: Path, marker: str) -> Iterator[Path]:
    """Create a folder that replaces `folder`, recognised by its file `marker`, if the block succeeds."""
    folder = folder.resolve()
    if folder.exists() and not (folder / marker).is_file():
        raise FileExistsError(f"{folder} exists and was not made by this command: choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = work.with_name(work.name + "-old")
    try:
        yield work
        work.chmod(0o755)  # folders from mkdtemp are private
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def takeaway(results: DemoResults) -> str:
    """Compare the last training run with the first in one sentence, with the interval of the difference."""
    first, last = results.runs[1], results.runs[-1]
    gap, ends = results.kl_difference, results.kl_difference_interval
    sure = "" if ends is None else f", {LEVEL:.0%} interval {ends[0]:+.3f} to {ends[1]:+.3f}"
    side = (
        f"{abs(gap) / first.held_out.kl:.0%} {'closer to' if gap < 0 else 'further from'} the truth than {first.name}"
    )
    if ends is None or ends[0] <= 0 <= ends[1]:
        side = f"not clearly closer to the truth than {first.name}"
    return f"{last.name} ends {side} (KL {gap:+.3f} nats{sure})".replace("-", "−")


def plot(results: DemoResults, path: Path) -> None:
    """Write the picture of `run_demo`'s results as PNG, readable in black and white."""
    picture(results).savefig(path, dpi=120)


@legible()
def picture(results: DemoResults) -> "Figure":
    """Draw the measures of each run with their intervals, and those of the truth as a line."""
    settings = results.settings
    panels = (
        ("held_out_nll", "held-out NLL\n(nats per token, lower is better)"),
        ("kl", "KL(truth || model)\n(nats, lower is better)"),
        ("coverage", "mode coverage\n(share of the truth, higher is better)"),
    )
    made, axes = figure(width=10, height=4.6, columns=len(panels))
    for axis, (name, title) in zip(axes, panels, strict=True):
        for place, run in enumerate(results.runs):
            value, ends = getattr(run.held_out, name), getattr(run.intervals, name)
            shade, hatch = str(0.9 - 0.2 * place), HATCHES[place % len(HATCHES)]
            axis.bar(place, value, color=shade, edgecolor="black", hatch=hatch)
            if ends is not None:
                axis.vlines(place, *ends, color="black", linewidth=2.5)
                axis.hlines(ends, place - 0.12, place + 0.12, color="black", linewidth=2.5)
            above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "va": "bottom", "zorder": 4}
            top = max([value, *(ends or ())])
            axis.annotate(f"{value:.3f}", (place, top), bbox={"color": "white", "pad": 0.6}, **above)
        axis.axhline(getattr(results.truth, name), color="black", linestyle="--", linewidth=2, clip_on=False, zorder=3)
        axis.set_xticks(range(len(results.runs)), [run.name for run in results.runs])
        axis.set_title(title, fontsize=12)
        axis.margins(y=0.15)
        axis.set_ylim(bottom=0)
    made.suptitle(takeaway(results), fontsize=14)
    made.supxlabel(
        f"Dashed: the truth. Error bars: {LEVEL:.0%} intervals over the {settings.held_out_prompts} held-out prompts, "
        f"one seed.\nQLoRA on {settings.train_prompts} other prompts.",
        fontsize=12,
    )
    return made
