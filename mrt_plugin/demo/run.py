"""The demo: QLoRA through Axolotl on K = 1 and on K = 4 responses per prompt, measured against a known truth.

All training data is generated. A tiny chat model is first trained on another world with the same prompts and answers.
It then knows the format and the possible answers, but not their probabilities in this world. Fine-tuning teaches the
probabilities from a pool of N draws per prompt, of which each run keeps K. Both runs use the same prompts, settings
and number of optimizer steps. Only K differs. The truth is known, so the distance to it is exact.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
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

RESULTS = "results.json"
TRUTH = "truth.jsonl"
"""Marks a folder as written by the demo, so that the next demo may replace it. `results.json` would not be enough:
`mrt simulate` writes one too."""

PANELS = (
    ("held_out_nll", "held-out NLL\n(nats per token, lower is better)"),
    ("kl", "KL(truth || model)\n(nats, lower is better)"),
    ("coverage", "mode coverage\n(share of the truth, higher is better)"),
)
HATCHES = ("", "//", "xx", "..")

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, its finished steps and its total steps."""


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
    """Run the demo and write all its files into `folder`, which appears complete or not at all.

    The folder holds the data, the model, the recipes, Axolotl's output and logs, `results.json` and `results.png`.
    The folder of an earlier demo is replaced.

    Returns:
        The content of `results.json`.

    Raises:
        FileExistsError: if `folder` exists and was not written by the demo.
        RuntimeError: if a training run fails. The message ends with the last lines of its log.

    Example:

    ```python
    results = run_demo(Path("demo_output"), QUICK)
    print(results["sentence"])
    ```
    """
    import_module("matplotlib")  # fails before the work if it is missing

    settings = settings or DemoSettings()
    with whole_folder(folder, marker=TRUTH) as work:
        started = time.perf_counter()
        train, held_out = _make_data(work, settings)
        encoder = _make_model(work, settings, lambda step: progress("base model", step, settings.pretraining_steps))
        runs: list[dict[str, Any]] = [{"name": "base model", "k": None, "adapter": None}]
        steps = settings.epochs * math.ceil(settings.train_prompts / 8)
        for k in settings.k:
            stage = f"axolotl train k{k}.yaml"

            def forward(done: int, stage: str = stage) -> None:
                progress(stage, done, steps)

            took = axolotl_train(work, k, settings.epochs, settings.seed, forward)
            progress(stage, steps, steps)
            runs.append({"name": f"K = {k}", "k": k, "adapter": f"k{k}", "seconds": asdict(took)})
        for number, run in enumerate(runs):
            progress("evaluation", number, len(runs))
            run.update(_measure(work, run["adapter"], encoder, train, held_out))
        progress("evaluation", len(runs), len(runs))
        results = {
            "settings": asdict(settings),
            "runs": runs,
            "truth": _truth(work, held_out, runs[0]["held_out_tokens"]),
            "sentence": describe(runs[1], runs[-1]),
            "seconds": time.perf_counter() - started,
        }
        plot(results, work / "results.png")
        shutil.rmtree(work / "prepared", ignore_errors=True)
        (work / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def describe(first: dict[str, Any], last: dict[str, Any]) -> str:
    """Summarise the results in one sentence.

    Example:

    >>> describe({"k": 1, "kl": 1.0}, {"k": 4, "kl": 0.7})[-80:]
    'closer to the truth by 30% (KL 1.000 to 0.700 nats), in as many optimizer steps.'
    """
    change = (last["kl"] - first["kl"]) / first["kl"]
    verb = "closer to" if change < 0 else "further from"
    return (
        f"On prompts it was not trained on, {last['k']} responses per prompt instead of {first['k']} brought the "
        f"model {verb} the truth by {abs(change):.0%} (KL {first['kl']:.3f} to {last['kl']:.3f} nats), in as "
        "many optimizer steps."
    )


def _make_data(work: Path, settings: DemoSettings) -> tuple[list[ModePrompt], list[ModePrompt]]:
    train, rest = split_prompts(mode_prompts(settings.seed), settings.train_prompts, settings.seed)
    held_out = rest[: settings.held_out_prompts]
    _write_lines(work / "pool.jsonl", draw_groups(train, settings.pool, settings.seed))
    _write_lines(work / "held_out.jsonl", draw_groups(held_out, settings.pool, settings.seed))
    _write_lines(work / TRUTH, (asdict(item) for item in train + held_out))
    return train, held_out


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


def _measure(
    work: Path, adapter: str | None, encoder: Encoder, train: list[ModePrompt], held_out: list[ModePrompt]
) -> dict[str, float]:
    transformers_logging.disable_progress_bar()
    model = load_model(work / "model", None if adapter is None else work / adapter, load_in_4bit=True)
    nll = held_out_nll(model, encoder, _read_lines(work / "held_out.jsonl"))
    distance, seen = truth_distance(model, encoder, held_out), truth_distance(model, encoder, train)
    return {
        "held_out_nll": nll.nll_per_token,
        "held_out_nll_per_response": nll.nll_per_response,
        "held_out_tokens": nll.tokens,
        "kl": distance.kl,
        "coverage": distance.coverage,
        "elsewhere": distance.elsewhere,
        "kl_on_training_prompts": seen.kl,
        "coverage_on_training_prompts": seen.coverage,
    }


def _truth(work: Path, held_out: list[ModePrompt], tokens: int) -> dict[str, float]:
    """Return the metrics of the truth itself. Its NLL on the held-out responses is the lowest expected value."""
    chances = {item.prompt: dict(zip(item.modes, item.probabilities, strict=True)) for item in held_out}
    drawn = _read_lines(work / "held_out.jsonl")
    nll = sum(-math.log(chances[group["prompt"]][response]) for group in drawn for response in group["responses"])
    return {"held_out_nll": nll / tokens, "kl": 0.0, "coverage": 1.0, "elsewhere": 0.0}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def whole_folder(folder: Path, marker: str) -> Iterator[Path]:
    """Create a working folder. It replaces `folder` if the block succeeds, and is removed otherwise.

    Args:
        folder: the folder of the result. An earlier result, recognised by its file `marker`, is replaced.
        marker: a file that every complete result contains.

    Raises:
        FileExistsError: if `folder` exists and does not contain `marker`, so it is not an earlier result.
    """
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
    """Write the figure of `results` (the return value of `run_demo`) as PNG. It is readable in black and white."""
    from matplotlib.figure import Figure

    runs = results["runs"]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for axis, (key, title) in zip(axes, PANELS, strict=True):
        for place, run in enumerate(runs):
            shade = str(0.85 - 0.25 * place)
            bar = axis.bar(place, run[key], color=shade, edgecolor="black", hatch=HATCHES[place % len(HATCHES)])
            axis.bar_label(bar, fmt="%.3f", padding=2)
        axis.set_xticks(range(len(runs)), [run["name"] for run in runs])
        axis.set_title(title, fontsize=10)
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    prompts = results["settings"]["train_prompts"]
    figure.suptitle(f"QLoRA on {prompts} prompts, measured on {results['settings']['held_out_prompts']} others")
    figure.savefig(path, dpi=120)
