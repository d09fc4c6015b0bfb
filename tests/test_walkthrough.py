"""docs/walkthrough.md and its notebook: what they show is what their commands and cells print, run in order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import processes
from helpers.processes import AXOLOTL, LIBRARIES, server

ROOT = Path(__file__).parents[1]
PAGE, NOTEBOOK = ROOT / "docs" / "walkthrough.md", ROOT / "recipes" / "walkthrough.ipynb"
BLOCKS = re.findall(r"^```(shell|text)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
FILES = ("pool.jsonl", "held_out.jsonl", "truth.jsonl", "recipe.yaml", "model")
LOG = re.compile(r"^.*\[(?:INFO|WARNING)\] \[[\w.]+\] ")
"""What Axolotl writes before a message."""
TOKEN = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?%?|[^\W\d]+|\S")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, in which the page's commands are run."""
    return tmp_path_factory.mktemp("walkthrough")


@pytest.fixture(scope="module")
def begun(folder: Path) -> str:
    """What the page's first command printed: it makes the data and pretrains the model, for the notebook too."""
    return _run(BLOCKS[0][1], folder)


@pytest.fixture(scope="module")
def printed(folder: Path, begun: str) -> list[tuple[str, str, str]]:
    """Each output block of the page with the command before it: command, what the page shows, what was printed."""
    found, command, output = [], BLOCKS[0][1], begun
    for language, text in BLOCKS[1:]:
        if language == "shell":
            command, output = text, _run(text, folder)
        else:
            found.append((command, text, output))
    return found


def _run(command: str, folder: Path) -> str:
    """Run a shell command with `mrt` and `axolotl` as functions. Return its output without Axolotl's prefixes."""
    run = f'"{sys.executable}" "{processes.__file__}" run'
    functions = (
        f'mrt() {{ {run} "{server(LIBRARIES)}" -c "from mrt_plugin.cli import app; app()" "$@"; }}\n'
        f'axolotl() {{ {run} "{server(AXOLOTL)}" -m axolotl.cli.main "$@"; }}\n'
    )
    environment = {**os.environ, "COLUMNS": "100", "HF_DATASETS_CACHE": str(folder / ".cache")}
    shell = ["bash", "-euc", functions + command]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return "\n".join(LOG.sub("", line) for line in re.split(r"[\r\n]+", done.stdout + done.stderr))


def same(shown: str, got: str) -> bool:
    """Return whether two lines are equal but for spaces, with the tolerances of `near`."""
    ours, theirs = TOKEN.findall(shown), TOKEN.findall(got)
    drawn = [place for place, token in enumerate(ours) if token == "drawn"]
    return len(ours) == len(theirs) and all(
        near(one, other, drawn=place + 1 in drawn) for place, (one, other) in enumerate(zip(ours, theirs, strict=True))
    )


def near(shown: str, got: str, *, drawn: bool = False) -> bool:
    """Return whether two tokens are equal.

    Numbers with a point may differ by 0.02 and a tenth of the number, those with % by 5, numbers of samples by 6: with
    another processor or release the last digits differ, and samples with them. Other tokens may not differ.
    """
    if shown == got:
        return True
    try:
        one, other = (float(text.rstrip("%").replace(",", "")) for text in (shown, got))
    except ValueError:
        return False
    if shown.endswith("%") and got.endswith("%"):
        return abs(one - other) <= 5
    if "." in shown and "." in got:
        return one * other > 0 and abs(one - other) <= 0.02 + 0.1 * abs(one)
    return drawn and abs(one - other) <= 6


def find(shown: str, output: str) -> str | None:
    """Look for the parts of `shown`, which `...` separates, in order. Return the first part that is not there."""
    lines, start = [line for line in output.splitlines() if line.strip()], 0
    for part in re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE):
        wanted = [line for line in part.splitlines() if line.strip()]
        places = range(start, len(lines) - len(wanted) + 1)
        ends = (place + len(wanted) for place in places if all(map(same, wanted, lines[place:])))
        end = next(ends, None)
        if end is None:
            return part
        start = end
    return None


@pytest.mark.axolotl
@pytest.mark.processes
@pytest.mark.slow
def test_the_commands_print_what_the_page_shows(printed: list[tuple[str, str, str]]) -> None:
    assert len(printed) >= 6
    for command, shown, output in printed:
        example = re.compile(r"┃ Suggest a .*┃ truth ┃ +K1 ┃ +K5 ┃")
        if example.match(shown) and shown.splitlines()[0] not in output:
            assert example.search(output), output[-8000:]  # with other last digits, another prompt is in the middle
            continue
        missing = find(shown, output)
        assert missing is None, f"{command}\nThe page shows\n{missing}\nand this was printed:\n{output[-8000:]}"


@pytest.mark.processes
@pytest.mark.slow
def test_the_notebook_shows_what_it_prints(folder: Path, begun: str, tmp_path: Path) -> None:
    """In a kernel of its own. It goes on from what the page's first command wrote."""
    import nbformat
    from nbclient import NotebookClient

    for name in FILES:
        (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, tmp_path / name)
    stored = nbformat.read(NOTEBOOK, as_version=4)
    made = nbformat.from_dict(stored)
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(made, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    cells = [pair for pair in zip(stored.cells, made.cells, strict=True) if pair[0].cell_type == "code"]
    assert sum(_pictures(cell) for cell, _ in cells) == 3
    assert sum(bool(_text(cell)) for cell, _ in cells) == 4
    for cell, again in cells:
        assert _pictures(cell) == _pictures(again)
        if "samples" in cell.metadata.get("tags", []):  # they follow the last digits, which other machines round
            assert len(_text(cell).splitlines()) == len(_text(again).splitlines())
        else:
            assert find(_text(cell), _text(again)) is None, f"{cell.source}\nprinted\n{_text(again)}"


def _text(cell: Any) -> str:
    """Return what a cell printed, without the messages of libraries."""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def _pictures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_a_difference_is_found() -> None:
    output = "one 0.876\nAt 160 prompts\n│ a │ 34% │ (4 drawn) │ better │\nthe end\n"
    assert find("one 0.88\n...\n│ a │  31% │ (1 drawn) │ better │\n", output) is None
    assert find("At 160 prompts\n...\none 0.876\n", output) == "one 0.876\n"
    for wrong in ("one 0.700", "one 0.876 nats", "At 161 prompts", "At 160 people", "At 160.0 prompts"):
        assert find(f"{wrong}\n", output) == f"{wrong}\n"
    for wrong in ("│ a │ 28% │ (4 drawn) │ better │", "│ a │ 34% │ (4 drawn) │ unclear │"):
        assert find(f"{wrong}\n", output) == f"{wrong}\n"
    assert not same("-0.01", "0.005")
    assert find("one 0.876\nthe end\n", output) == "one 0.876\nthe end\n"
