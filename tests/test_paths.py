"""No command writes over an input or over another of its files, however the paths are spelled."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import tiny
from helpers.cli import CliRunner

from mrt_plugin.cli import app
from mrt_plugin.demo.run import RESULTS, run_demo
from mrt_plugin.groups import paths
from mrt_plugin.groups.paths import check_paths
from mrt_plugin.pipeline.files import select_file
from mrt_plugin.pipeline.job import PoolFile, SelectJob


def pool_lines(count: int = 12, texts: str = "abc") -> str:
    rows = [
        {
            "id": f"g{n}",
            "prompt": f"Say {n} of the sea.",
            "responses": [f"{n} {k}" for k in texts],
            "scores": list(range(len(texts))),
        }
        for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an input of every kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.jsonl").write_text(pool_lines())
    (tmp_path / "held.jsonl").write_text(pool_lines(4))
    (tmp_path / "chosen.jsonl").write_text(pool_lines(texts="ac"))
    (tmp_path / "new.jsonl").write_text('{"prompt": "Name a stone."}\n')
    (tmp_path / "rules.yaml").write_text("[format]\n")
    (tmp_path / "mine.py").write_text("def score(prompt, responses):\n    return [0.0] * len(responses)\n")
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(
        "base_model: model\ndatasets: [{path: pool.jsonl, ds_type: json, type: mrt_plugin.axolotl.random_k}]\n"
    )
    tiny.model_dir(tmp_path / "model")
    os.symlink("pool.jsonl", tmp_path / "link.jsonl")
    os.link(tmp_path / "pool.jsonl", tmp_path / "hard.jsonl")
    os.symlink(tmp_path, tmp_path / "elsewhere")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "elsewhere" not in path.parts
    }


SELECT = "select pool.jsonl --k 2"
DRAW = "--model model --max-tokens 2"
REFUSED = [
    # select
    f"{SELECT} --output pool.jsonl",
    f"{SELECT} --output ./x/../pool.jsonl",
    f"{SELECT} --output elsewhere/pool.jsonl",
    f"{SELECT} --output link.jsonl",
    f"{SELECT} --output hard.jsonl",
    "select link.jsonl --k 2 --output pool.jsonl",
    f"{SELECT} --output o.jsonl --held-out 0.3 --held-out-output o.jsonl",
    f"{SELECT} --output o.jsonl --held-out 0.3 --held-out-output pool.jsonl",
    f"{SELECT} --output o.jsonl --held-out 0.3 --held-out-output o.jsonl.manifest.jsonl",
    f"{SELECT} --output o.jsonl --held-out 0.3 --curation format --decisions o.held_out.jsonl",
    f"{SELECT} --output o.jsonl --curation format --decisions pool.jsonl",
    f"{SELECT} --output o.jsonl --curation format --decisions ./o.jsonl",
    f"{SELECT} --output o.jsonl --curation rules.yaml --decisions rules.yaml",
    f"{SELECT} --output o.jsonl --scorer mine.py:score --curation format --decisions mine.py",
    f"{SELECT} --output o.jsonl --tokenizer model --curation format --decisions model/tokenizer.json",
    f"{SELECT} --output o.jsonl --export sft=o.jsonl",
    f"{SELECT} --output o.jsonl --export sft=pool.jsonl",
    f"{SELECT} --output o.jsonl --export sft=e.jsonl --export dpo=e.jsonl",
    f"{SELECT} --output o.jsonl --export sft=o.jsonl.manifest.jsonl",
    f"{SELECT} --output o.jsonl --export sft=.o.jsonl.partial.jsonl --curation format --decisions .o.jsonl.partial",
    f"{SELECT} --output o.jsonl --scorer mine.py:score --score-cache . --curation format --decisions scores.sqlite3",
    f"{SELECT} --output pool.jsonl/o.jsonl",
    "select held.jsonl pool.jsonl --k 2 --output held.jsonl",
    # sample
    f"sample new.jsonl {DRAW} --n 1 --output new.jsonl",
    f"sample --extend pool.jsonl {DRAW} --to 4 --output pool.jsonl",
    f"sample --extend pool.jsonl {DRAW} --to 4 --output link.jsonl",
    # reports
    "plan pool.jsonl --report pool.jsonl",
    "plan pool.jsonl --model model --report model/config.json",
    "audit held.jsonl --pool pool.jsonl --report pool.jsonl",
    "audit held.jsonl --pool pool.jsonl --report hard.jsonl",
    "audit held.jsonl --pool pool.jsonl --report held.jsonl",
    "evaluate --data held.jsonl --pool base=pool.jsonl --report held.jsonl",
    "evaluate --data held.jsonl --pool base=pool.jsonl --report pool.jsonl",
    "evaluate --data held.jsonl --model held=model --output . --m 1",
    "evaluate --data held.jsonl --model model --output out --m 1 --report out/model.jsonl",
    "evaluate --data held.jsonl --model model --m 0 --report model/config.json",
    # the others that write
    "augment new.jsonl --data pool.jsonl --output new.jsonl",
    "augment new.jsonl --data pool.jsonl --output pool.jsonl",
    "grid --recipe recipe.yaml --output pool.jsonl",
    "grid --recipe n6-k2-r0.yaml --cost-prompt 3 --cost-response 1 --prompts 6 --k 1,2 --output .",
    "bench --model model --plot model",
    "bench --model model --plot picture.jpg",
]


@pytest.mark.parametrize("command", REFUSED)
def test_every_command_refuses(command: str, folder: Path) -> None:
    (folder / "n6-k2-r0.yaml").write_text((folder / "recipe.yaml").read_text())
    before = contents(folder)
    shown = CliRunner().invoke(app, command.split())
    assert contents(folder) == before
    assert shown.exit_code == 1, shown.output
    assert "error: " in shown.output
    assert "write to another place" in shown.output or "end in one of" in shown.output


def test_from_a_manifest(folder: Path) -> None:
    done = select_file(SelectJob(k=2, pools=[PoolFile("pool.jsonl")], output=folder / "o.jsonl", held_out=0.3))
    select_file(SelectJob(k=2, pools=[PoolFile("held.jsonl")], output=folder / "other.jsonl"))
    before = contents(folder)
    again = f"select --from-manifest {done.manifest.name} --output"
    for command in (
        f"{again} pool.jsonl",
        f"{again} {done.manifest.name}",
        f"{again} a.jsonl --held-out-output a.jsonl",
        f"{again} a.jsonl --held-out-output link.jsonl",
        f"{again} other.jsonl",
    ):
        shown = CliRunner().invoke(app, command.split())
        assert (shown.exit_code, contents(folder)) == (1, before), command
    assert CliRunner().invoke(app, f"{again} o.jsonl".split()).exit_code == 0
    assert contents(folder) == before


def test_what_is_allowed(folder: Path) -> None:
    (folder / "model" / "report.html").write_text("an earlier report")
    check_paths(
        [("--output", "o.jsonl"), ("--report", "model/report.html"), ("--held-out-output", None)],
        [("the pool", "pool.jsonl"), ("the pool", "some-hub/id"), ("--curation", "- format: {}\n" * 99)],
        ["model", "a/name", None],
    )
    for path, words in (("pool.jsonl/x", "a file, not a folder"), ("model", "no ordinary file")):
        with pytest.raises(ValueError, match=words):
            check_paths([("--report", path)])


def test_names_that_differ_in_case_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_paths([("--output", "Pool.jsonl")], [("the pool", "pool.jsonl")])
    monkeypatch.setattr(paths, "_folds_case", lambda folder: True)
    with pytest.raises(ValueError, match="same file"):
        check_paths([("--output", "Pool.jsonl")], [("the pool", "pool.jsonl")])


def test_a_held_out_file_of_an_earlier_run(folder: Path) -> None:
    """Its prompts are trained on by the next run with the same output: refused, or removed on request."""

    def run(*more: str, status: int = 0) -> str:
        shown = CliRunner().invoke(app, [*SELECT.split(), "--output", "o.jsonl", *more])
        assert shown.exit_code == status, shown.output
        return shown.output

    for where in ("o.held_out.jsonl", "aside/part.jsonl"):
        run("--held-out", "0.3", "--held-out-output", where)
        run("--held-out", "0.4", "--held-out-output", where)
        before = contents(folder)
        assert "held out of o.jsonl" in run(status=1)
        assert "--overwrite" in run("--held-out", "0.3", "--held-out-output", "new_part.jsonl", status=1)
        assert contents(folder) == before
        assert "removed" in run("--overwrite")
        assert not (folder / where).exists()
        run()


def test_exports_of_an_earlier_run(folder: Path) -> None:
    """They hold responses that the selection beside them does not: said, or removed on request."""

    def run(*more: str) -> str:
        shown = CliRunner().invoke(app, [*SELECT.split(), "--output", "o.jsonl", *more])
        assert shown.exit_code == 0, shown.output
        return shown.output

    first, other = "--export sft=flat/s.jsonl".split(), "--export sft=other.jsonl".split()
    words = "export of an earlier run"
    assert words not in run(*first)
    assert words not in run(*first)
    shown, export = run(*other), folder / "flat/s.jsonl"
    assert f"{Path('flat/s.jsonl')} is the export of an earlier run to o.jsonl" in shown
    assert export.is_file()
    run(*first)
    (folder / "other.jsonl").unlink()
    assert "s.jsonl was of an earlier run: removed" in run("--overwrite")
    assert not export.exists()
    assert "earlier run" not in run()


def test_the_hash_is_that_of_what_was_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrt_plugin.pipeline import files

    pool = folder / "pool.jsonl"
    job = SelectJob(k=2, pools=[PoolFile("pool.jsonl")], output=folder / "o.jsonl")
    digest = files.sha256_of(pool)

    def change_after(step: Callable) -> Callable:
        def changed(*arguments: object, **more: object) -> object:
            found = step(*arguments, **more)
            pool.write_text(pool_lines(3))
            return found

        return changed

    with monkeypatch.context() as patched:
        patched.setattr(files, "curate", change_after(files.curate))
        header = json.loads(select_file(job).manifest.read_text().splitlines()[0])
    assert header["pools"][0]["sha256"] == digest != files.sha256_of(pool)
    pool.write_text(pool_lines())
    monkeypatch.setattr(files, "read_groups", change_after(files.read_groups))
    with pytest.raises(ValueError, match="changed while it was read"):
        select_file(job)


@pytest.mark.parametrize(
    ("command", "report"),
    [
        ("plan pool.jsonl --report r.html", "r.html"),
        ("audit chosen.jsonl --pool pool.jsonl --report r.html", "r.html"),
        ("evaluate --data held.jsonl --pool base=pool.jsonl --report r.html", "r.html"),
        ("augment new.jsonl --data pool.jsonl --output r.html", "r.html"),
    ],
)
def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(
    command: str, report: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the end of the write."""
    (folder / report).write_text("an earlier report")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mrt_plugin.groups.write.os.fsync", full)
    shown = CliRunner().invoke(app, command.split())
    assert shown.exit_code == 1
    assert "No space left" in shown.output
    assert (folder / report).read_text() == "an earlier report"
    assert not list(folder.glob(".*.partial"))


def test_a_demo_replaces_only_a_demo(tmp_path: Path) -> None:
    """`mrt simulate` writes a `results.json` too, and so do people."""
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(FileExistsError, match="choose another folder"):
        run_demo(tmp_path)
    assert (tmp_path / RESULTS).read_text() == "{}"
