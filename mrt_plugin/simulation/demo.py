"""The demo: QLoRA through Axolotl on K = 1 and on K = 4 responses per prompt, measured against a known truth.

Everything it trains on is generated. A tiny chat model first learns another world of the same prompts and answers, so
that it knows the format and what can be answered, but not how likely each answer is here. Fine-tuning has to teach it
that from a pool of N draws per prompt, of which each run keeps K. Both runs see the same prompts and take the same
number of optimizer steps with the same settings; only K differs. The truth is known, so the distance to it is exact.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from mrt_plugin.encoding import Encoder
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.evaluation.held_out import held_out_nll
from mrt_plugin.evaluation.known_truth import truth_distance
from mrt_plugin.evaluation.load import load_model
from mrt_plugin.simulation.modes import ModePrompt, draw_groups, mode_prompts, split_prompts
from mrt_plugin.simulation.tiny_model import build_llama, build_tokenizer, pretrain, save

RESULTS = "results.json"

RECIPE = """\
# Multi-response training of a tiny model, K = {k}: an ordinary Axolotl QLoRA recipe. Run it again in this folder with
#   axolotl train {name}.yaml --launcher python
base_model: model

plugins:
  - mrt_plugin.axolotl.MultiResponsePlugin
datasets:
  - path: pool.jsonl                          # one JSON object a line: prompt, responses
    ds_type: json
    type: mrt_plugin.axolotl.random_k         # which responses are kept ...
mrt:
  k: {k}                                        # ... and how many per prompt

adapter: qlora
load_in_4bit: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.0
lora_target_linear: true

sequence_len: 256
micro_batch_size: 8                           # counts prompts, whatever K is
gradient_accumulation_steps: 1
num_epochs: {epochs}
learning_rate: 0.002                          # ten times the usual 2e-4: the model is tiny
lr_scheduler: cosine
warmup_ratio: 0.03
weight_decay: 0.03
optimizer: adamw_torch
seed: {seed}

attn_implementation: sdpa
bf16: false                                   # fp32, so that it runs the same on a CPU
fp16: false
lora_mlp_kernel: false
lora_qkv_kernel: false
lora_o_kernel: false

output_dir: {name}
dataset_prepared_path: prepared
save_strategy: "no"                           # the adapter is saved at the end in any case
logging_steps: 10
"""

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done in it and their number."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo trains on and for how long."""

    seed: int = 0
    train_prompts: int = 160
    held_out_prompts: int = 160
    pool: int = 8
    """N, the draws per prompt."""
    k: tuple[int, ...] = (1, 4)
    epochs: int = 8
    pretraining_steps: int = 250


QUICK = DemoSettings(train_prompts=24, held_out_prompts=16, epochs=1, pretraining_steps=20)
"""The short form: proves that everything runs. Its numbers mean nothing."""


def run_demo(
    folder: Path, settings: DemoSettings | None = None, progress: Progress = lambda *_: None
) -> dict[str, Any]:
    """Run the demo and put everything it made into `folder`, which appears complete or not at all.

    The folder holds the data, the model, the recipes, what Axolotl wrote and logged, `results.json` and `results.png`.
    A folder of an earlier demo is replaced.

    Returns:
        What `results.json` holds.

    Raises:
        FileExistsError: if `folder` exists and is not a demo's.
        RuntimeError: if a training run fails; the message ends with its last lines.
    """
    settings = settings or DemoSettings()
    with _whole_folder(folder) as work:
        started = time.perf_counter()
        progress("data", 0, 1)
        train, held_out = _make_data(work, settings)
        progress("data", 1, 1)
        encoder = _make_model(work, settings, lambda step: progress("base model", step, settings.pretraining_steps))
        runs = []
        for k in settings.k:
            name = f"k{k}"
            (work / f"{name}.yaml").write_text(
                RECIPE.format(k=k, name=name, epochs=settings.epochs, seed=settings.seed), encoding="utf-8"
            )
            clock = time.perf_counter()
            _axolotl_train(
                work, name, lambda done, total, name=name: progress(f"axolotl train {name}.yaml", done, total)
            )
            runs.append({"name": f"K = {k}", "k": k, "adapter": name, "seconds": time.perf_counter() - clock})
        rows = []
        for number, run in enumerate([{"name": "base model", "k": None, "adapter": None, "seconds": None}, *runs]):
            progress("evaluation", number, len(runs) + 1)
            rows.append({**run, **_measure(work, run["adapter"], encoder, train, held_out)})
        progress("evaluation", len(runs) + 1, len(runs) + 1)
        results = {
            "settings": asdict(settings),
            "entropy_per_response": float(np.mean([item.entropy for item in held_out])),
            "runs": rows,
            "seconds": time.perf_counter() - started,
        }
        results["sentence"] = describe(results)
        (work / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        from mrt_plugin.simulation.demo_plot import plot

        plot(results, work / "results.png")
        shutil.rmtree(work / "prepared", ignore_errors=True)
    return results


def describe(results: dict[str, Any]) -> str:
    """What the numbers say, in one sentence."""
    first, last = results["runs"][1], results["runs"][-1]
    change = (last["kl"] - first["kl"]) / first["kl"]
    direction = "closer to" if change < 0 else "further from"
    return (
        f"On prompts it was not trained on, keeping {last['k']} responses per prompt instead of {first['k']} brought "
        f"the model {abs(change):.0%} {direction} the truth (KL {first['kl']:.3f} to {last['kl']:.3f} nats), "
        f"in {last['seconds'] / first['seconds']:.1f} times the training time."
    )


def _make_data(work: Path, settings: DemoSettings) -> tuple[list[ModePrompt], list[ModePrompt]]:
    train, rest = split_prompts(mode_prompts(settings.seed), settings.train_prompts, settings.seed)
    held_out = rest[: settings.held_out_prompts]
    _write_lines(work / "pool.jsonl", draw_groups(train, settings.pool, settings.seed))
    _write_lines(work / "held_out.jsonl", draw_groups(held_out, settings.pool, settings.seed))
    _write_lines(work / "truth.jsonl", (asdict(item) for item in train + held_out))
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
    model = load_model(work / "model", None if adapter is None else work / adapter, load_in_4bit=True)
    with (work / "held_out.jsonl").open(encoding="utf-8") as lines:
        nll = held_out_nll(model, encoder, [json.loads(line) for line in lines])
    distance, seen = truth_distance(model, encoder, held_out), truth_distance(model, encoder, train)
    return {
        "held_out_nll": nll.nll_per_token,
        "held_out_nll_per_response": nll.nll_per_response,
        "kl": distance.kl,
        "coverage": distance.coverage,
        "elsewhere": distance.elsewhere,
        "kl_on_training_prompts": seen.kl,
        "coverage_on_training_prompts": seen.coverage,
    }


def _axolotl_train(work: Path, name: str, progress: Callable[[int, int], None]) -> None:
    """Run the recipe as a user would, its output in a log file, following the step count there."""
    log = work / f"{name}.log"
    environment = {
        **os.environ,
        "AXOLOTL_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "120",
    }
    command = [sys.executable, "-m", "axolotl.cli.main", "train", f"{name}.yaml", "--launcher", "python"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(0.5)
                steps = re.findall(rb"\| (\d+)/(\d+) \[", log.read_bytes())
                if steps:
                    progress(int(steps[-1][0]), int(steps[-1][1]))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0 or not (work / name / "adapter_model.safetensors").is_file():
        tail = log.read_text(encoding="utf-8", errors="replace")[-4000:]
        raise RuntimeError(f"axolotl train {name}.yaml failed with exit status {process.returncode}:\n{tail}")


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A working folder that takes the place of `folder` when the block ends well, and vanishes when it does not."""
    folder = folder.resolve()
    if folder.exists() and not (folder / RESULTS).is_file():
        raise FileExistsError(f"{folder} exists and is not the output of a demo: give another --output.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield work
        work.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / folder.name)
            work.rename(folder)
            shutil.rmtree(old)
        else:
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
