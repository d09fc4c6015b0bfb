"""The README's code does what it says, as it stands there: only the model, the file and the device are local."""

import json
import os
import re
from pathlib import Path

import pytest
from helpers import tiny
from helpers.processes import run_python

from mrt_plugin import load_groups

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = "meta-llama/Llama-3.2-1B-Instruct"


def block(language: str) -> str:
    """The only block of this language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.model_dir(tmp_path / "model")
    group = json.loads(block("json"))
    lines = [json.dumps({**group, "prompt": f"{group['prompt']} Number {index}."}) + "\n" for index in range(8)]
    (tmp_path / "pool.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    done = run_python(arguments, cwd=folder, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_data_can_be_read(folder: Path) -> None:
    (folder / "one.jsonl").write_text(block("json"), encoding="utf-8")
    (group,) = load_groups(str(folder / "one.jsonl"))
    assert len(group["responses"]) == len(group["scores"]) == 4


@pytest.mark.processes
def test_the_trl_code_trains(folder: Path) -> None:
    code = block("python").replace(MODEL, "model")
    code = code.replace("        output_dir=", "        bf16=False, use_cpu=True, output_dir=")
    (folder / "train.py").write_text(code, encoding="utf-8")
    run(folder, "train.py")
    assert (folder / "outputs/run/adapter_model.safetensors").is_file()


@pytest.mark.processes
@pytest.mark.axolotl
def test_the_recipe_trains(folder: Path) -> None:
    recipe = block("yaml").replace(MODEL, "model").replace("bf16: auto", "bf16: false")
    recipe = recipe.replace("val_set_size: 0.05", "val_set_size: 0.3")
    kernels = re.findall(r"`(lora_\w+_kernel: false)`", README)
    assert len(kernels) == 3
    (folder / "recipe.yaml").write_text(recipe + "\n".join(kernels) + "\n", encoding="utf-8")
    run(folder, "-m", "axolotl.cli.main", "train", "recipe.yaml", "--launcher", "python")
    assert (folder / "outputs/run/adapter_model.safetensors").is_file()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_every_command_is_listed() -> None:
    import typer

    from mrt_plugin.cli import app

    listed = set(re.findall(r"^\| `mrt ([\w-]+)", README, re.MULTILINE))
    assert listed == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_the_versions_named_are_those_supported() -> None:
    from mrt_plugin.versions import TESTED, libraries

    ranges = {library.name: library.supported for library in libraries()}
    sentence = README.partition("Supported are")[2].split("\n\n")[0].lower()
    named = re.findall(r"(\w+) ([\d.]+)\s+to\s+([\d.]+\d)", sentence)
    assert {name for name, _, _ in named} == {*TESTED} - {"bitsandbytes"}
    for name, lowest, highest in named:
        assert ranges[name].startswith(f">={lowest}"), name
        assert highest == TESTED[name], name
