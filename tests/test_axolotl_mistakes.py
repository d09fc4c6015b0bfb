"""A mistake in a recipe or its data ends an Axolotl command in one message, without a traceback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import axolotl_recipe
from helpers.axolotl_runs import axolotl

pytest.importorskip("axolotl")
pytestmark = pytest.mark.axolotl

PREFIX = "mrt_plugin.axolotl."


def write(folder: Path, model: str, rows: list[dict[str, Any]], kind: str = "random_k", **changes: Any) -> str:
    axolotl_recipe.write_rows(folder / "pool.jsonl", rows)
    entry = {"path": "pool.jsonl", "ds_type": "json", "type": PREFIX + kind}
    return axolotl_recipe.write(folder, axolotl_recipe.recipe(folder, model, **{"datasets": [entry], **changes}))


def message(printed: str) -> str:
    """Return what stands behind `error: `, the only one, as the last thing printed."""
    assert "Traceback" not in printed
    assert printed.count("error: ") == 1
    return printed.partition("error: ")[2]


def without_scores() -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("prompt", "responses")} for row in axolotl_recipe.groups()]


def one_text() -> list[dict[str, Any]]:
    rows = axolotl_recipe.groups()
    rows[3]["responses"] = "one text"
    return rows


GOOD = axolotl_recipe.groups()
MISTAKES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "selector": (GOOD, {"kind": "bestk"}, f"type '{PREFIX}bestk' is unknown. Did you mean {PREFIX}best_k?"),
    "key": (GOOD, {"mrt": {"kk": 3}}, "mrt.kk is not an option: did you mean k?\n"),
    "file": (
        GOOD,
        {"datasets": [{"path": "pol.jsonl", "ds_type": "json", "type": PREFIX + "random_k"}]},
        "there is no such file: pol.jsonl; did you mean pool.jsonl?\n",
    ),
    "source": (GOOD, {"mrt": {"source": "necter"}}, "source='necter' is unknown. Did you mean 'nectar'?"),
    "scores": (without_scores(), {"kind": "best_k"}, "selector='best_k' needs scores, and the groups have none"),
    "row": (one_text(), {}, "line 4, column `responses`: it is a string"),
    "plugin": (GOOD, {"plugins": None, "mrt": None}, "needs the plugin"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_ends_in_one_message(mistake: str, tmp_path: Path, tiny_model_dir: str) -> None:
    if mistake == "plugin" and axolotl_recipe.loads_installed_plugins():
        pytest.skip("this release of Axolotl loads the plugin by itself")
    rows, changes, expected = MISTAKES[mistake]
    recipe = write(tmp_path, tiny_model_dir, rows, **changes)
    printed = axolotl("preprocess", Path(recipe).name, folder=tmp_path, status=1)
    assert expected in message(printed)


def test_training_ends_so_too_and_the_traceback_can_be_had(tmp_path: Path, tiny_model_dir: str) -> None:
    """None of 60 pairs fits, which a process of a pool does not find, nor the part that reads the recipe."""
    recipe = write(tmp_path, tiny_model_dir, GOOD, sequence_len=8)
    start = ("train", recipe, "--launcher", "python")
    assert "none of the 60 selected pairs fits sequence_len=8" in message(axolotl(*start, folder=tmp_path, status=1))
    shown = axolotl(*start, folder=tmp_path, status=1, MRT_TRACEBACK="1")
    assert "Traceback (most recent call last)" in shown
    assert "none of the 60 selected pairs fits sequence_len=8" in shown


def test_the_launcher_can_be_quiet_too(tmp_path: Path, tiny_model_dir: str) -> None:
    """`accelerate launch` shows a traceback of its own, and none with --quiet."""
    write(tmp_path, tiny_model_dir, GOOD, mrt={"kk": 3})
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        [scripts / "axolotl", "train", "recipe.yaml", "--", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
    )
    assert done.returncode == 1
    assert message(done.stderr) == "mrt.kk is not an option: did you mean k?\n"
