"""Long work shows what it does: plain lines in a log, bars on a terminal, and no carriage return in a file."""

import io
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from mrt_plugin.cli import progress
from mrt_plugin.cli.progress import _Lines, _WithoutReturns, stages

pytestmark = pytest.mark.processes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> tuple[_Lines, list[str]]:
    written: list[str] = []
    shown = _Lines(written.append, clock)
    monkeypatch.setattr(shown, "_watch", lambda: None)
    shown._thread = type("Thread", (), {"ident": 1})()  # type: ignore[assignment]
    return shown, written


def test_a_line_after_two_seconds_and_then_every_ten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, written = lines(clock, monkeypatch)
    shown.report("losses", 0, 400)
    for second in range(1, 41):
        clock.now = float(second)
        shown.report("losses", 10 * second, 400)
        shown.look()
    assert written == [
        "losses: 20 of 400 (5%), 2 s, 38 s left",
        "losses: 120 of 400 (30%), 12 s, 28 s left",
        "losses: 220 of 400 (55%), 22 s, 18 s left",
        "losses: 320 of 400 (80%), 32 s, 8 s left",
    ]
    shown.report("clusters", 0, 2)
    assert written[4:] == ["losses: done in 40 s"]
    clock.now = 41.0
    shown.stop()
    assert len(written) == 5, "a stage of a second needs no line"


def test_a_day_has_few_lines(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, written = lines(clock, monkeypatch)
    shown.report("draws", 0, 100)
    for second in range(86_400):
        clock.now = float(second)
        shown.look()
    assert 50 < len(written) < 100
    assert written[-1].startswith("draws: 0 of 100 (0%), 2")


def test_a_failed_stage_is_not_done(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, written = lines(clock, monkeypatch)
    shown.report("opening a model")
    clock.now = 5.0
    shown.look()
    shown.stop(failed=True)
    assert written == ["opening a model ... 5 s"]


def test_bars_of_libraries_become_lines() -> None:
    from tqdm import tqdm

    found = io.StringIO()
    for leave in (True, False):
        with tqdm(total=3, file=_WithoutReturns(found), mininterval=0, delay=0, leave=leave, desc="Map") as bar:  # type: ignore[arg-type]
            for _ in range(3):
                bar.update()
    print("after", file=_WithoutReturns(found))  # type: ignore[arg-type]
    text = found.getvalue()
    assert "\r" not in text
    assert "\n\n" not in text
    assert re.search(r"^Map: +67%.*2/3", text, re.MULTILINE)
    assert text.endswith("after\n")


SLOW = """
import sys, time
from mrt_plugin.cli import progress
progress.FIRST, progress.EVERY = 0.2, 0.2
from mrt_plugin.cli.progress import lines_in_logs, stages
with lines_in_logs():
    import datasets
    with stages() as report:
        report("opening the model")
        time.sleep(0.7)
        rows = datasets.Dataset.from_dict({"a": list(range(30))})
        report("mapping")
        rows.map(lambda row: time.sleep(0.03), desc="Sleeping")
        for done in range(1, 8):
            report("losses", done, 7)
            time.sleep(0.1)
"""


def test_a_redirected_log_has_lines(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "\r" not in done.stderr
    assert not done.stdout
    assert re.search(r"^opening the model \.\.\. \d s$", done.stderr, re.MULTILINE)
    assert re.search(r"^opening the model: done in 1 s$", done.stderr, re.MULTILINE)
    assert re.search(r"^Sleeping: +\d+%\|.*/30 ", done.stderr, re.MULTILINE)
    assert re.search(r"^losses: \d of 7 \(\d+%\)", done.stderr, re.MULTILINE)
    assert "" not in done.stderr.splitlines()


def test_a_terminal_has_bars(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    started = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        stderr=theirs,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            some = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not some:
            break
        seen += some
    assert started.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode(errors="replace"))
    for name in ("opening the model", "mapping", "Sleeping", "losses"):
        assert name in text
    assert "30/30" not in text.split("losses")[-1], "a library's bar goes when it ends"
    assert "7/7" in text


def test_commands_report_their_stages(tmp_path: Path) -> None:
    """`mrt select` in a log, with times so short that every stage has a line."""
    row = '{"prompt": "%d", "responses": ["a %d", "b", "c"]}\n'
    (tmp_path / "pool.jsonl").write_text("".join(row % (number, number) for number in range(50)))
    code = "from mrt_plugin.cli import app, progress; progress.FIRST = 0.05; app()"
    line = ["select", "pool.jsonl", "--k", "2", "--output", "o.jsonl", "--held-out", "0.2", "--curation", "default"]
    done = subprocess.run(
        [sys.executable, "-c", code, *line], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "\r" not in done.stderr
    assert "reading the pools ..." in done.stderr
    assert "done in" in done.stderr


def test_the_block_may_end_without_a_stage() -> None:
    with stages():
        pass
    assert progress.FIRST <= 2
