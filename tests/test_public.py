"""The public names: each resolves, says what it does, and has an example that runs."""

import doctest
import inspect
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.endpoint_server import serve
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import mrt_plugin

NAMES = {
    "mrt_plugin": mrt_plugin.__all__,
    "mrt_plugin.curation": ["curate", "mix"],
    "mrt_plugin.encoding": ["Encoder"],
    "mrt_plugin.evaluation": ["How", "evaluation_report", "load_checker", "read_cases"],
    "mrt_plugin.models": ["parse_models"],
    "mrt_plugin.planning": ["advise"],
    "mrt_plugin.pipeline": ["PoolFile", "SelectJob", "select_file"],
    "mrt_plugin.sampling": ["Endpoint", "LocalModel", "SamplingSettings", "sample_pool"],
    "mrt_plugin.scoring": ["load_embedder"],
}
"""The names that the documentation imports, by package."""

LOCAL = (
    ('output_dir="out"', 'output_dir="out", bf16=False, use_cpu=True, report_to="none", max_steps=1'),
    ('TrainingArguments("out"', 'TrainingArguments("out", use_cpu=True'),
    ("path/or/name", "path/to/base"),
    ("m=8", "m=1"),
    ('"pool.jsonl", n=16', '"drawn.jsonl", n=4'),
)
"""What an example leaves to the user's machine, and what it is here."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples read."""
    folder = tmp_path_factory.mktemp("examples")
    base = folder / "path" / "to" / "base"
    tiny.model_dir(base)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear"))
    adapted.save_pretrained(folder / "outputs" / "run")
    colours = ["red", "green", "blue", "white", "black"]
    for name, count in (("pool", 6), ("held_out", 2), ("prompts", 2)):
        rows = [
            {
                "prompt": f"Name a colour. This is {name} number {number}.",
                "responses": [f"It is {colour}." for colour in colours],
                "scores": [0.1, 0.5, 0.3, 0.9, 0.7],
            }
            for number in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def examples() -> list[Any]:
    pairs = [(package, name) for package, names in NAMES.items() for name in names]
    slow = ("evaluate", "evaluation_report")  # they draw samples from a model
    return [pytest.param(*pair, marks=[pytest.mark.slow] if pair[1] in slow else []) for pair in pairs]


@pytest.mark.parametrize(("package", "name"), examples())
def test_the_example_runs(
    package: str, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = import_module(package)
    found = getattr(room, name)
    assert name in room.__all__
    assert found.__name__ == name
    text = inspect.getdoc(found)
    assert text is not None
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    if not blocks:
        home: Any = sys.modules[found.__module__]
        (test,) = doctest.DocTestFinder(recurse=False).find(found, name, globs=dict(vars(home)))
        assert test.examples, f"{name} has no example"
        assert not doctest.DocTestRunner().run(test).failed
    for code in blocks:
        for theirs, ours in LOCAL:
            code = code.replace(theirs, ours)
        with serve() as server:
            server.models = ["tiny"]
            code = code.replace("localhost:8000", f"127.0.0.1:{server.server_address[1]}")
            exec(code, {"model": tiny.llama(), "tokenizer": tiny.tokenizer()})


def test_the_page_of_the_api_has_every_public_name() -> None:
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    named = [f"{package}.{name}" for package, names in NAMES.items() for name in names]
    assert sorted(re.findall(r"^::: (\S+)$", page, re.MULTILINE)) == sorted(named)


def test_the_pages_import_public_names_alone() -> None:
    root = Path(__file__).parents[1]
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    found = [
        pair for page in pages for pair in re.findall(r"^from (mrt_plugin\S*) import (.+)$", page.read_text(), re.M)
    ]
    assert len(found) > 10
    for package, names in found:
        assert package.count(".") <= 1, package
        assert set(names.split(", ")) <= set(NAMES[package]), (package, names)
