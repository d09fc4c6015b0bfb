"""Help stands in panels, what most people need first; mistakes on the command line are one line that fits."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.cli import CliRunner

from mrt_plugin.cli import app
from mrt_plugin.cli.option import FIRST, PANELS

GROUP: Any = typer.main.get_command(app)
TITLES = ["What it works on", "Which way", "Where it runs and writes", "How much"]


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_the_first_options_stand_above_the_panels(name: str) -> None:
    options = [item for item in GROUP.commands[name].params if item.param_type_name == "option"]
    first = FIRST[name]
    assert len(first) <= 5
    assert [item.name for item in options[: len(first)]] == list(first)
    assert all(item.rich_help_panel is None for item in options[: len(first)])
    others = [TITLES.index(item.rich_help_panel) for item in options[len(first) :]]
    assert others == sorted(others)


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_the_help_shows_them_in_this_order(name: str) -> None:
    shown = CliRunner(env={"COLUMNS": "120"}).invoke(app, [name, "--help"]).output
    titles = ["Options", *TITLES]
    places = [shown.find(f"─ {title} ─") for title in titles]
    assert places[0] > 0
    found = [place for place in places if place > 0]
    assert found == sorted(found)
    for option in FIRST[name]:
        assert places[0] < shown.index(f"--{option.replace('_', '-')}", places[0]) < min(found[1:], default=len(shown))


def test_every_panel_has_options_that_there_are() -> None:
    names = {item.name for command in GROUP.commands.values() for item in command.params}
    assert set(PANELS) <= names
    assert set(PANELS.values()) == set(TITLES)
    assert set(FIRST) == set(GROUP.commands)


MISTAKES = [
    ("sampel", "there is no command sampel; did you mean sample? mrt --help lists the commands."),
    ("xyz", "there is no command xyz. mrt --help lists the commands."),
    ("--versoin", "there is no option --versoin; did you mean --version or --verbose?"),
    ("select pool.jsonl --selctor best_k", "there is no option --selctor; did you mean --selector or --scorer?"),
    ("plan", "'. mrt plan --help has an example."),
    ("audit pool.jsonl", "Missing option '--pool'. mrt audit --help has an example."),
    ("select pool.jsonl --output o.jsonl --curation defualt", "no rules defualt; did you mean default?"),
    ("select pool.jsonl --output o.jsonl --curation rule.yaml", "no such file: rule.yaml; did you mean rules.yaml?"),
    ("select pool.jsonl --output o.jsonl --curation folder", "folder is a folder: give a .yaml file, or `default`."),
    ("select folder --output o.jsonl", "folder is a folder without data: give a file."),
    ("plan pool.jsonl --model pool.jsonl", "pool.jsonl is a file: give the folder that the model was saved to."),
    ("doctor pool.jsonl", "pool.jsonl is no recipe: give a .yaml file."),
    ("doctor folder", "folder is a folder: give a file."),
    ("simulate --only varaince", "Experiment 'varaince' is unknown. Did you mean variance?"),
    ("select pool.jsonl --output o.jsonl --selector bestk", "Did you mean best_k?"),
    ("select share.jsonl --output o.jsonl", "source 'sharegpt', line 1: `conversations`: `conversations[0]` has no"),
    ("select pool.jsonl --output o.jsonl --source sharegpt", "need no source: leave out source='sharegpt'."),
    (
        "select flat.jsonl --output o.jsonl",
        "Read it with source='fields:prompt=prompt,completion=response'.",
    ),
    ("sample pool.jsonl --model model --output pool.jsonl", "is the same file as the prompts pool.jsonl"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "a", "responses": ["b", "c"]}
    share = {"conversations": [{"role": "user", "text": "x"}]}
    files = {"pool": row, "share": share, "flat": {"prompt": "a", "response": "b"}}
    for name, content in files.items():
        Path(f"{name}.jsonl").write_text(json.dumps(content) + "\n")
    Path("rules.yaml").write_text("[format]\n")
    Path("folder").mkdir()
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(("line", "words"), MISTAKES)
def test_a_mistake_is_one_line_that_fits(folder: Path, line: str, words: str) -> None:
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, line.split())
    assert result.exit_code == 1
    lines = [one for one in result.output.splitlines() if one.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert lines[0].count("id you mean") <= 1
    assert not (folder / "o.jsonl").exists()


def test_verbose_shows_the_traceback(folder: Path) -> None:
    result = CliRunner().invoke(app, ["--verbose", "select", "flat.jsonl", "--output", "o.jsonl"])
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "DataError"
    assert os.environ.get("MRT_TRACEBACK") is None
