"""One `axolotl train` run of the demo: its recipe, and the command that a user would run."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class TrainingTime:
    """Seconds of one `axolotl train`."""

    whole: float
    """Of the command."""
    steps: float
    """Of the optimizer steps, as the trainer reports them."""


def axolotl_train(work: Path, k: int, epochs: int, seed: int, progress: Callable[[int], None]) -> TrainingTime:
    """Train `model` on `pool.jsonl` in the folder `work`. Writes `k<K>.yaml`, `k<K>.log` and the adapter `k<K>`."""
    name = f"k{k}"
    recipe = RECIPE.format(k=k, name=name, epochs=epochs, seed=seed)
    (work / f"{name}.yaml").write_text(recipe, encoding="utf-8")
    log = work / f"{name}.log"
    environment = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "axolotl.cli.main", "train", f"{name}.yaml", "--launcher", "python"]
    clock = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=work, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                # tqdm's progress bar of the training loop, the only bar without a description
                steps = re.findall(rb"%\|[^|\r\n]*\| (\d+)/\d+ \[", log.read_bytes().partition(b"Starting trainer")[2])
                progress(int(steps[-1]) if steps else 0)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    runtime = re.search(r"'train_runtime': '?([0-9.]+)", text)
    if process.returncode != 0 or runtime is None or not (work / name / "adapter_model.safetensors").is_file():
        raise RuntimeError(f"axolotl train {name}.yaml failed with exit status {process.returncode}:\n{text[-4000:]}")
    return TrainingTime(time.perf_counter() - clock, float(runtime[1]))
