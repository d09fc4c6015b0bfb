"""`mrt evaluate` as it is called: on endpoints that misbehave, killed in the middle, with files that are wrong."""

import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import CliRunner
from helpers.endpoint_server import Server, serve
from helpers.processes import start_python

from mrt_plugin.cli import app

FAILURES = ["500", "429", "cut off", "half a body", "reset", "garbage", "html", "no choices", "empty choices"]


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        running.models = ["base", "tuned"]
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"Name colour {index}.", "responses": ["red", "the sea green"]} for index in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(server: Server, data: Path, *more: str, models: tuple[str, ...] = ("base", "tuned")) -> list[str]:
    named = [part for model in models for part in ("--model", model)]
    folder = str(data.parent / "evaluation")
    quick = ["--backoff", "0.01", "--timeout", "1", "--m", "4", "--output", folder]
    return ["evaluate", *named, "--data", str(data), "--endpoint", server.url, *quick, *more]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def numbers(document: str) -> dict[str, Any]:
    """The result as printed by `--json`, without the folder of the samples."""
    found: dict[str, Any] = json.loads(document)
    del found["how"]["folder"], found["next"]
    return found


class TestEndpoint:
    def test_two_models_side_by_side(self, server: Server, data: Path, tmp_path: Path) -> None:
        page = tmp_path / "evaluation.html"
        done = run(*options(server, data, "--checker", "exact", "--report", str(page)))
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("No clear difference between tuned and base on 8 prompts: ")
        for words in ("tuned minus base", "coverage of 4", "pass@1", "the references", "no held-out NLL", "M = 2"):
            assert words in done.stdout
        assert done.stdout.splitlines()[-1].startswith("Next: ")
        text = page.read_text(encoding="utf-8")
        assert text.count("<svg") == 1
        assert text.count('class="strip ') == 5
        assert not re.search(r"<script|<link|@import|(?:src|href)=\"(?:https?:)?//", text)

    def test_a_misbehaving_endpoint_changes_nothing(self, server: Server, data: Path, tmp_path: Path) -> None:
        """Every request fails twice, each time in another way; the numbers are those of a calm run."""
        calm = run(*options(server, data, "--json"))
        assert calm.exit_code == 0, calm.output
        tries: dict[str, int] = {}

        def behave(number: int, body: dict[str, Any]) -> str:
            key = json.dumps(body)
            tries[key] = tries.get(key, 0) + 1
            return "ok" if tries[key] > 2 else FAILURES[(len(tries) + tries[key]) % len(FAILURES)]

        server.behave = behave
        again = run(*options(server, data, "--json", "--output", str(tmp_path / "again")))
        assert again.exit_code == 0, again.output
        assert set(tries.values()) == {3}
        assert numbers(again.stdout) == numbers(calm.stdout)

    def test_an_endpoint_that_hangs_is_given_up_and_gone_on_with(self, server: Server, data: Path) -> None:
        """The second model stops answering: what was drawn is kept, and the same command draws only the rest."""
        server.behave = lambda number, body: "hang" if body["model"] == "tuned" and number >= 12 else "ok"
        done = run(*options(server, data, "--retries", "0", "--timeout", "0.2", "--concurrency", "4"))
        assert done.exit_code == 1
        assert "goes on from there" in done.stderr
        assert (data.parent / "evaluation" / "base.jsonl").exists()
        server.behave = lambda number, body: "ok"
        asked = len(server.asked)
        done = run(*options(server, data, "--json"))
        assert done.exit_code == 0, done.output
        later = server.asked[asked:]
        assert {body["model"] for body in later} == {"tuned"}
        assert 0 < len(later) < 8
        assert [model["samples"]["draws"] for model in json.loads(done.stdout)["models"]] == [32, 32]

    @pytest.mark.processes
    def test_killed_in_the_middle_it_goes_on(self, server: Server, data: Path, tmp_path: Path) -> None:
        calm = numbers(run(*options(server, data, "--json")).stdout)
        server.delay = 0.15
        folder = tmp_path / "killed"
        arguments = options(server, data, "--json", "--concurrency", "1", "--output", str(folder))
        command = ["-c", "from mrt_plugin.cli import app; app()", *arguments]
        asked = len(server.asked)
        process = start_python(command)
        deadline = time.monotonic() + 60
        while len(server.asked) < asked + 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        kept = sum(path.read_text().count('"draws"') for path in folder.glob("*.journal"))
        assert 3 <= kept < 16
        server.delay = 0.0
        before = len(server.asked)
        done = run(*arguments)
        assert done.exit_code == 0, done.output
        assert len(server.asked) - before == 16 - kept
        assert numbers(done.stdout) == calm

    def test_the_only_model_of_an_endpoint_need_not_be_named(self, server: Server, data: Path) -> None:
        server.models = ["org/only"]
        done = run(*options(server, data, "--json", models=()))
        assert done.exit_code == 0, done.output
        assert [model["name"] for model in json.loads(done.stdout)["models"]] == ["org/only"]
        server.models = ["one", "two"]
        done = run(*options(server, data, models=()))
        assert done.exit_code == 1
        assert "has 2 models; name one: one, two" in done.stderr

    def test_prompts_that_are_turned_away(self, server: Server, data: Path) -> None:
        server.behave = lambda number, body: "400" if "colour 3" in json.dumps(body) and number else "ok"
        done = run(*options(server, data, "--json", models=("base",)))
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["models"][0]["samples"]["least"] == 0
        assert any("1 prompts were rejected by the endpoint" in note for note in found["notes"])
        coverage = [row for row in found["models"][0]["measures"] if row["measure"] == "coverage"]
        assert {row["prompts"] for row in coverage} == {7}


class TestFiles:
    def test_samples_from_files(self, data: Path, tmp_path: Path) -> None:
        for name, texts in (("good", ["red", "the sea green"]), ("same", ["red", "red"])):
            rows = [{"prompt": f"Name colour {index}.", "responses": texts} for index in range(8)]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pools = ["--pool", str(tmp_path / "same.jsonl"), "--pool", f"better={tmp_path / 'good.jsonl'}"]
        done = run("evaluate", *pools, "--data", str(data), "--json")
        assert done.exit_code == 0, done.output
        rows = {(row["measure"], row["m"]): row for row in json.loads(done.stdout)["differences"]}
        assert rows["coverage", 2]["outcome"] == "better"
        assert rows["diversity", None]["difference"] > 0
        assert rows["alignment", None]["difference"] == pytest.approx(0, abs=1e-9)

    def test_a_local_model_on_the_command_line(self, data: Path, tmp_path: Path, tiny_model_dir: str) -> None:
        page = tmp_path / "page.html"
        arguments = [
            "evaluate",
            "--model",
            f"mine={tiny_model_dir}",
            "--data",
            str(data),
            "--m",
            "2",
            "--max-tokens",
            "4",
        ]
        arguments += ["--output", str(tmp_path / "out"), "--max-prompts", "3"]
        done = run(*arguments, "--report", str(page))
        assert done.exit_code == 0, done.output
        assert "held-out NLL per token" in done.stdout
        again = f"mrt evaluate --model BASE --model mine={tiny_model_dir} --data {data} --m 2 --max-tokens 4"
        assert again in done.stdout.splitlines()[-1]
        line = shlex.split(done.stdout.splitlines()[-1].partition("mrt ")[2].replace("BASE", f"base={tiny_model_dir}"))
        assert run(*line, "--max-prompts", "3", "--report", str(page)).exit_code == 0
        assert done.stdout.startswith("mine alone, on 3 prompts: held-out NLL per token is ")
        assert page.stat().st_size > 5000
        done = run(*arguments, "--json")
        assert json.loads(done.stdout)["data"]["prompts"] == 3

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "Name what to evaluate: --model PATH, or --pool FILE"),
            (["--model", "a", "--model", "b", "--adapter", "c"], "write --model BASE+ADAPTER"),
            (["--model", "x=a", "--model", "x=b"], "Two models are called 'x'"),
            (["--model", "a", "--checker", "regex"], "choose exact, numeric"),
            (["--model", "a", "--at", "1,two"], "write numbers with commas"),
            (["--model", "a", "--at", "0"], "at least 1"),
            (["--pool", "no-such.jsonl"], "there is no such file"),
            (["--model", "a", "--temperature", "-1"], "-1.0 must be a finite number, at least 0"),
            (["--model", "a", "--endpoint", "nowhere"], "is not an address"),
            (
                ["--model", "a", "--load-in-4bit", "--endpoint", "http://h/v1"],
                "--load-in-4bit changes nothing here: it needs a run without --endpoint",
            ),
            (["--model", "a", "--adapter", "b", "--endpoint", "http://h/v1"], "--adapter b changes nothing here"),
        ],
    )
    def test_mistakes(self, arguments: list[str], words: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(data.parent)
        done = run("evaluate", "--data", str(data), *arguments)
        assert done.exit_code == 1
        assert words in done.stderr

    def test_empty_data(self, tmp_path: Path) -> None:
        (tmp_path / "empty.jsonl").write_text("")
        done = run("evaluate", "--data", str(tmp_path / "empty.jsonl"), "--model", "a")
        assert done.exit_code == 1
        assert "it is empty" in done.stderr
