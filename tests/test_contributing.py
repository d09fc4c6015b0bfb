"""CONTRIBUTING.md: the steps of every section, run in order in a folder of their own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("title", SECTIONS)
def test_the_steps_work(title: str, tmp_path: Path) -> None:
    """Blocks that start with `# file: NAME` are written there, or applied if they are a diff. The others are run.

    The package is copied, so that a step may add a file to it. Sections share the files of the sections before them,
    but not their changes of the package.
    """
    shutil.copytree(ROOT / "mrt_plugin", tmp_path / "mrt_plugin")
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
        _run([sys.executable, "-c", text], folder)
    elif language == "bash":
        _run(
            [
                "bash",
                "-euc",
                f'mrt() {{ "{sys.executable}" -c "from mrt_plugin.cli import app; app()" "$@"; }}\n{text}',
            ],
            folder,
        )


def _run(command: list[str], folder: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command[-1]}\n{result.stdout}{result.stderr}"
