"""The code of the README and of docs/trl.md does what it says: only the model, the file and the device are local."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from helpers import tiny
from helpers.processes import run_python

from mrt_plugin import load_groups

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("trl.md", "your-card.md", "installing.md")
}
HUB = re.compile(r"meta-llama/Llama-3.2-1B-Instruct|Qwen/Qwen3-4B")
OTHER_LINES = """
base_model: model
adapter: qlora
load_in_4bit: true
lora_r: 8
lora_alpha: 16
lora_target_linear: true
sequence_len: 4096
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 2
learning_rate: 0.0002
lr_scheduler: cosine
optimizer: adamw_torch
val_set_size: 0.3
gradient_checkpointing: true
output_dir: outputs/run
"""
"""What any recipe of Axolotl has besides the plugin's lines."""


def block(page: str, language: str, having: str = "") -> str:
    """The only block of this language with these words."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if having in text]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.model_dir(tmp_path / "model")
    group = json.loads(block(README, "json"))
    lines = [json.dumps({**group, "prompt": f"{group['prompt']} Number {index}."}) + "\n" for index in range(8)]
    (tmp_path / "pool.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    done = run_python(arguments, cwd=folder, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_data_can_be_read(folder: Path) -> None:
    (folder / "one.jsonl").write_text(block(README, "json"), encoding="utf-8")
    (group,) = load_groups(str(folder / "one.jsonl"))
    assert len(group["responses"]) == len(group["scores"]) == 4


@pytest.mark.processes
@pytest.mark.parametrize(("page", "saved"), [(README, False), (PAGES["trl.md"], True)], ids=["README", "trl.md"])
def test_the_trl_code_trains(page: str, saved: bool, folder: Path) -> None:
    code = HUB.sub("model", block(page, "python"))
    code = re.sub(r"(?=output_dir=)", "bf16=False, use_cpu=True, max_steps=3, ", code)
    (folder / "train.py").write_text(code, encoding="utf-8")
    assert "train_runtime" in run(folder, "train.py")
    assert (folder / "outputs/run/adapter_model.safetensors").is_file() == saved


@pytest.mark.processes
@pytest.mark.axolotl
def test_the_plugins_lines_make_a_recipe(folder: Path) -> None:
    """With the lines for a CPU that docs/your-card.md names."""
    for_cpu = re.findall(r"`((?:bf16|attn_implementation|lora_\w+_kernel): \w+)`", PAGES["your-card.md"])
    assert len(for_cpu) == 5
    recipe = block(README, "yaml") + OTHER_LINES + "\n".join(for_cpu)
    (folder / "recipe.yaml").write_text(recipe + "\n", encoding="utf-8")
    run(folder, "-m", "axolotl.cli.main", "train", "recipe.yaml", "--launcher", "python")
    assert (folder / "outputs/run/adapter_model.safetensors").is_file()


@pytest.mark.processes
@pytest.mark.axolotl
def test_the_commands_lead_to_a_trained_model(folder: Path) -> None:
    commands = block(README, "shell", having="mrt init").replace("12gb", "cpu").splitlines()
    for line in commands:
        program, *arguments = shlex.split(HUB.sub("model", line), comments=True)
        if program == "mrt":
            run(folder, "-c", "from mrt_plugin.cli import app; app()", *arguments)
        else:
            assert program == "axolotl"
            run(folder, "-m", "axolotl.cli.main", *arguments, "--launcher", "python")
    assert len(commands) == 3
    assert (folder / "outputs/recipe/adapter_model.safetensors").is_file()


def test_the_versions_named_are_those_supported() -> None:
    from mrt_plugin.versions import TESTED, libraries

    ranges = {library.name: library.supported for library in libraries()}
    sentence = PAGES["installing.md"].partition("Supported are")[2].split("\n\n")[0].lower()
    named = re.findall(r"(\w+) ([\d.]+)\s+to\s+([\d.]+\d)", sentence)
    assert {name for name, _, _ in named} == {*TESTED} - {"bitsandbytes"}
    for name, lowest, highest in named:
        assert ranges[name].startswith(f">={lowest}"), name
        assert highest == TESTED[name], name
