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
from typing import Any

import numpy as np
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from mrt_plugin.demo.modes import ModePrompt, draw_groups, mode_prompts, split_prompts, truth_distance
from mrt_plugin.demo.training import axolotl_train
from mrt_plugin.encoding import Encoder, Pair
from mrt_plugin.evaluation.held_out import held_out_nll
from mrt_plugin.models.load import load_model
from mrt_plugin.models.tiny_model import build_llama, build_tokenizer, pretrain, save
from mrt_plugin.planning.progress import Progress
from mrt_plugin.report import figure

RESULTS = "results.json"
TRUTH = "truth.jsonl"
"""Marks a folder as written by the demo, so that the next demo may replace it."""

PANELS = (
    ("held_out_nll", "held-out NLL\n(nats per token, lower is better)"),
    ("kl", "KL(truth || model)\n(nats, lower is better)"),
    ("coverage", "mode coverage\n(share of the truth, higher is better)"),
)
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


def run_demo(
    folder: Path, settings: DemoSettings | None = None, progress: Progress = lambda *_: None
) -> dict[str, Any]:
    """Run the demo, write all its files into `folder`, and return the content of its `results.json`."""
    import_module("matplotlib")  # fails before the work if it is missing

    settings = settings or DemoSettings()
    with whole_folder(folder, marker=TRUTH) as work:
        started = time.perf_counter()
        train, rest = split_prompts(mode_prompts(settings.seed), settings.train_prompts, settings.seed)
        held_out = rest[: settings.held_out_prompts]
        pool, groups = (draw_groups(prompts, settings.pool, settings.seed) for prompts in (train, held_out))
        truth = [asdict(item) for item in train + held_out]
        for name, rows in (("pool.jsonl", pool), ("held_out.jsonl", groups), (TRUTH, truth)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (work / name).write_text(text, encoding="utf-8")
        encoder = _make_model(work, settings, lambda step: progress("base model", step, settings.pretraining_steps))
        runs: list[dict[str, Any]] = [{"name": "base model", "k": None, "adapter": None}]
        steps = settings.epochs * math.ceil(settings.train_prompts / 8)
        for k in settings.k:

            def forward(done: int, stage: str = f"axolotl train k{k}.yaml") -> None:
                progress(stage, done, steps)

            seconds = axolotl_train(work, k, settings.epochs, settings.seed, forward)
            forward(steps)
            runs.append({"name": f"K = {k}", "k": k, "adapter": f"k{k}", "seconds": seconds})
        transformers_logging.disable_progress_bar()
        for number, run in enumerate(runs):
            adapter = None if run["adapter"] is None else work / run["adapter"]
            model = load_model(work / "model", adapter, load_in_4bit=True)
            per_token, per_response = held_out_nll(model, encoder, groups)
            distance, seen = truth_distance(model, encoder, held_out), truth_distance(model, encoder, train)
            run.update(
                held_out_nll=per_token.value,
                held_out_nll_per_response=per_response.value,
                held_out_tokens=int(per_token.weights.sum()),
                kl=distance.kl,
                coverage=distance.coverage,
                elsewhere=distance.elsewhere,
                kl_on_training_prompts=seen.kl,
                coverage_on_training_prompts=seen.coverage,
            )
            progress("evaluation", number + 1, len(runs))
        results = {
            "settings": asdict(settings),
            "runs": runs,
            "truth": _truth(groups, held_out, runs[0]["held_out_tokens"]),
            "sentence": describe(runs[1], runs[-1]),
            "seconds": time.perf_counter() - started,
        }
        plot(results, work / "results.png")
        shutil.rmtree(work / "prepared", ignore_errors=True)
        (work / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def describe(first: dict[str, Any], last: dict[str, Any]) -> str:
    """Summarise the results in one sentence."""
    change = (last["kl"] - first["kl"]) / first["kl"]
    verb = "closer to" if change < 0 else "further from"
    return (
        f"On prompts it was not trained on, {last['k']} responses per prompt instead of {first['k']} brought the "
        f"model {verb} the truth by {abs(change):.0%} (KL {first['kl']:.3f} to {last['kl']:.3f} nats), in as "
        "many optimizer steps."
    )


def _make_model(work: Path, settings: DemoSettings, progress: Callable[[int], None]) -> Encoder:
    other_world = mode_prompts(settings.seed + 1000, sharpness=1.0)
    tokenizer = build_tokenizer([text for item in other_world for text in (item.prompt, *item.modes)])
    encoder = Encoder(tokenizer)
    random = np.random.default_rng([settings.seed, 3])

    def draw(step: int) -> list[Pair]:
        items = [other_world[index] for index in random.integers(len(other_world), size=64)]
        return [encoder.encode(item.prompt, str(random.choice(item.modes, p=item.probabilities))) for item in items]

    model = build_llama(tokenizer, settings.seed)
    pretrain(model, draw, steps=settings.pretraining_steps, progress=progress)
    save(model, tokenizer, work / "model")
    return Encoder(AutoTokenizer.from_pretrained(work / "model"))


def _truth(groups: list[dict[str, Any]], held_out: list[ModePrompt], tokens: int) -> dict[str, float]:
    """Return the metrics of the truth itself. Its NLL on the held-out responses is the lowest expected value."""
    chances = {item.prompt: dict(zip(item.modes, item.probabilities, strict=True)) for item in held_out}
    nll = sum(-math.log(chances[group["prompt"]][response]) for group in groups for response in group["responses"])
    return {"held_out_nll": nll / tokens, "kl": 0.0, "coverage": 1.0, "elsewhere": 0.0}


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


def plot(results: dict[str, Any], path: Path) -> None:
    """Write the figure of `run_demo`'s results as PNG, readable in black and white."""
    runs = results["runs"]
    made, axes = figure(width=10, height=3.4, columns=len(PANELS))
    for axis, (key, title) in zip(axes, PANELS, strict=True):
        for place, run in enumerate(runs):
            shade = str(0.85 - 0.25 * place)
            bar = axis.bar(place, run[key], color=shade, edgecolor="black", hatch=HATCHES[place % len(HATCHES)])
            axis.bar_label(bar, fmt="%.3f", padding=2)
        axis.set_xticks(range(len(runs)), [run["name"] for run in runs])
        axis.set_title(title, fontsize=10)
        axis.margins(y=0.15)
    prompts = results["settings"]["train_prompts"]
    made.suptitle(f"QLoRA on {prompts} prompts, measured on {results['settings']['held_out_prompts']} others")
    made.savefig(path, dpi=120)
