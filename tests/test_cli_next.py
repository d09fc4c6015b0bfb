"""Every `Next:` of a command can be pasted: it is parsed by the real command line, and run where that is cheap."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.cli import CliRunner
from helpers.endpoint_server import Server, answer, serve

from mrt_plugin.cli import app
from mrt_plugin.cli.show import command_line

GROUP: Any = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pools, one of them with a space in its name."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "prompt": f"Name a number near {n}.",
            "responses": [f"{n + d} is near {n}, I think." for d in range(6)],
            "scores": [0.1 * d for d in range(6)],
        }
        for n in range(30)
    ]
    for name in ("pool.jsonl", "my pool.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


def run(line: str) -> str:
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.output
    return result.output


def next_of(shown: str) -> str:
    """Return the only command that a command suggests, after the real command line has parsed it."""
    (line,) = (line for line in shown.splitlines() if line.startswith("Next: "))
    command = line.removeprefix("Next: ")
    program, name, *arguments = shlex.split(command)
    assert program == "mrt"
    GROUP.commands[name].make_context(name, list(arguments))
    return shlex.join([name, *arguments])


def test_select_suggests_an_audit_of_its_files() -> None:
    command = next_of(run("select 'my pool.jsonl' --k 2 --output 'my chosen.jsonl'"))
    assert command == "audit 'my chosen.jsonl' --pool 'my pool.jsonl'"
    run(command)


def test_select_from_several_pools_suggests_what_takes_one_file() -> None:
    command = next_of(run("select pool.jsonl 'my pool.jsonl' --k 2 --output chosen.jsonl"))
    assert command == "init --data chosen.jsonl"


def test_select_leaves_out_columns_of_zeros() -> None:
    shown = run("select pool.jsonl --k 2 --output chosen.jsonl")
    for name in ("added", "changed", "flagged"):
        assert name not in shown.partition("chosen.jsonl:")[0].partition("180 in")[0]
    assert "dropped" in shown
    assert shown.count("random_k: kept") == 1


def test_sample_suggests_more_tokens_where_most_was_cut_off(tiny_model_dir: str) -> None:
    Path("two.txt").write_text("Name a number.\nName a fruit.\n")
    line = f"sample two.txt --model {tiny_model_dir} --n 2 --max-tokens 2 --output drawn.jsonl"
    command = next_of(run(line))
    assert command == f"sample two.txt --model {tiny_model_dir} --n 2 --max-tokens 8 --output drawn_longer.jsonl"
    run(command)


def test_sample_suggests_a_selection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server cuts one answer in five off; here none."""

    def whole(body: dict[str, Any]) -> dict[str, Any]:
        found = answer(body)
        return {**found, "choices": [{**choice, "finish_reason": "stop"} for choice in found["choices"]]}

    monkeypatch.setattr("helpers.endpoint_server.answer", whole)
    Path("two.txt").write_text("Name a number.\nName a fruit.\n")
    command = next_of(run(f"sample two.txt --endpoint {server.url} --model tiny --n 3 --output 'a pool.jsonl'"))
    assert command == "select 'a pool.jsonl' --output chosen.jsonl"
    run(command)


def test_augment_suggests_responses_for_its_prompts(server: Server) -> None:
    Path("new.jsonl").write_text('{"prompt": "Which animals live in a desert?"}\n')
    shown = run("augment new.jsonl --data pool.jsonl --output kept.jsonl")
    command = next_of(shown.replace("Next: with the model that is to answer as MODEL: ", "Next: "))
    assert command == "sample kept.jsonl --model MODEL --output kept_pool.jsonl"
    line = f"augment --data pool.jsonl --endpoint {server.url} --model tiny --per-step 6 --output made.jsonl"
    command = next_of(run(line))
    assert command == f"sample made.jsonl --endpoint {server.url} --model tiny --output made_pool.jsonl"
    run(f"{command} --n 2")


def test_grid_suggests_itself_with_an_output() -> None:
    shown = run("grid 'my pool.jsonl' --cost-prompt 2 --cost-response 1 --k 1,2")
    command = shown[shown.index("mrt grid") :].strip()
    assert command == "mrt grid 'my pool.jsonl' --k 1,2 --cost-prompt 2.0 --cost-response 1.0 --output grid"
    shown = run(command.removeprefix("mrt "))
    assert Path("grid/runs.jsonl").is_file()
    assert "then: mrt grid --results grid/runs.jsonl" in shown


def test_doctor_suggests_a_first_recipe() -> None:
    assert next_of(run("doctor")) == "init"


def test_options_are_quoted_for_a_shell() -> None:
    line = command_line("mrt x", "a b", None, many=["1", "2 3"], switch=True, off=False, none=None, model="m;rm")
    assert line == "mrt x 'a b' --many 1 --many '2 3' --switch --model 'm;rm'"
