"""CONTRIBUTING.md: the steps of every section, run in order in a folder of their own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import processes
from helpers.processes import OTHERS, run_python, server

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PARTS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
SECTIONS = {part.partition("\n")[0]: part for part in PARTS if BLOCK.search(part)}


@pytest.mark.processes
@pytest.mark.parametrize("title", SECTIONS)
def test_the_steps_work(title: str, tmp_path: Path) -> None:
    """Blocks that start with `# file: NAME` are written there, or applied if they are a diff. The others are run.

    The package is copied, so that a step may add a file to it. Sections share the files of the sections before them,
    but not their changes of the package.
    """
    shutil.copytree(ROOT / "mrt_plugin", tmp_path / "mrt_plugin")
    _step("python", None, f"import mrt_plugin; assert mrt_plugin.__file__.startswith({str(tmp_path)!r})", tmp_path)
    for other, section in SECTIONS.items():
        for language, body in BLOCK.findall(section):
            name, text = _file(body)
            if other == title or (name and language != "diff" and not name.startswith("mrt_plugin/")):
                _step(language, name, text, tmp_path)
        if other == title:
            break


def _file(body: str) -> tuple[str | None, str]:
    found = re.match(r"# file: (\S+)\n", body)
    return (found[1], body[found.end() :]) if found else (None, body)


def _step(language: str, name: str | None, text: str, folder: Path) -> None:
    if language == "diff":
        assert name is not None
        lines = text.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        content = (folder / name).read_text()
        assert content.count(before) == 1, f"{name} has {content.count(before)} times:\n{before}"
        (folder / name).write_text(content.replace(before, after))
    elif name is not None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    elif language == "python":
        _check(text, run_python(["-c", text], cwd=folder, env=_environment(folder), libraries=OTHERS))
    elif language == "bash":
        commands = (
            f'python() {{ "{sys.executable}" "{processes.__file__}" run "{server(OTHERS)}" "$@"; }}\n'
            'mrt() { python -c "from mrt_plugin.cli import app; app()" "$@"; }\n'
        )
        shell = ["bash", "-euc", commands + text]
        _check(text, subprocess.run(shell, cwd=folder, env=_environment(folder), capture_output=True, text=True))


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "HF_DATASETS_CACHE": str(folder / "cache")}


def _check(step: str, done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"
