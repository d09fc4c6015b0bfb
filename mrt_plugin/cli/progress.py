"""Show what a command is doing: bars on a terminal, plain lines in a log."""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

FIRST = 2.0
"""Seconds after which a log gets the first line on a stage."""
EVERY = 10.0
"""The fewest seconds between two lines on a stage. Later it is a tenth of what the stage has taken."""

Report = Callable[..., None]
"""Called as (stage, done, total). Without done and total it is not known how long the stage takes."""


@contextmanager
def stages() -> Iterator[Report]:
    """Show the progress of one stage after another on stderr. The block gets a function to report them with."""
    shown: Any = _Bars() if _on_screen() else _Lines(lambda line: print(line, file=sys.stderr, flush=True))
    try:
        yield shown.report
    except BaseException:
        shown.stop(failed=True)
        raise
    shown.stop()


@contextmanager
def loading() -> Iterator[None]:
    """Show that imports are under way, which take seconds."""
    with stages() as report:
        report("loading libraries")
        yield


def _on_screen() -> bool:
    """Return whether stderr can show a bar that changes."""
    return sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal


class _Bars:
    def __init__(self) -> None:
        counts = TextColumn("{task.fields[counts]}")
        columns = (TextColumn("{task.description}"), BarColumn(), counts, TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._tasks: dict[str, Any] = {}
        self._open = ""
        self._inner: TaskID | None = None
        self._started, self._below = False, sys.stderr

    def report(self, stage: str, done: int = 0, total: int = 0) -> None:
        if not self._started:  # not before the first stage: a question may stand there
            self._progress.start()
            self._started, self._below = True, sys.stderr
            sys.stderr = _WithoutReturns(self._below, self._library)  # type: ignore[assignment]
        if self._open and self._open != stage:  # a stage of unknown length leaves nothing
            self._progress.remove_task(self._tasks.pop(self._open))
        self._open = "" if total else stage
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total or None, counts="")
        counts = f"{done}/{total}" if total else ""
        self._progress.update(self._tasks[stage], completed=done, total=total or None, counts=counts)

    def stop(self, failed: bool = False) -> None:
        self._library("")
        if self._open:
            self._progress.remove_task(self._tasks.pop(self._open))
        if self._started:
            sys.stderr = self._below
            self._progress.stop()

    def _library(self, state: str) -> None:
        """Show the bar of a library as a row, which it leaves when it ends."""
        found = re.match(r"(.+?):?\s+\d+%\|.*\|\s*(\d+)/(\d+)", state)
        done, total = (int(found[2]), int(found[3])) if found else (0, 0)
        if self._inner is not None and (not state or done == total > 0):
            self._progress.remove_task(self._inner)
            self._inner = None
        elif state and self._inner is None:
            self._inner = self._progress.add_task("", total=None, counts="")
        if state and self._inner is not None:
            counts = f"{done}/{total}" if total else ""
            name = found[1] if found else state
            self._progress.update(self._inner, description=name, completed=done, total=total or None, counts=counts)


class _Lines:
    """Writes a line on the current stage from time to time, from a thread: a step of it may take long."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock, self._lock, self._end = write, clock, threading.Lock(), threading.Event()
        self._stage, self._done, self._total, self._begun, self._shown = "", 0, 0, 0.0, 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def report(self, stage: str, done: int = 0, total: int = 0) -> None:
        with self._lock:
            if stage != self._stage:
                self._close()
                self._stage, self._begun, self._shown = stage, self._clock(), 0.0
            self._done, self._total = done, total
        if self._thread.ident is None:
            self._thread.start()

    def stop(self, failed: bool = False) -> None:
        self._end.set()
        with self._lock:
            self._close(failed)

    def look(self) -> None:
        """Write a line if it is time for one."""
        with self._lock:
            taken = self._clock() - self._begun
            due = self._shown + max(EVERY, taken / 10) if self._shown else FIRST
            if not self._total and isinstance(sys.stderr, _WithoutReturns):
                due = max(due, sys.stderr.written + EVERY - self._begun)  # somebody else just told what is done
            due += EVERY if self._done >= self._total > 0 else 0  # its end comes next
            if self._stage and taken >= due:
                self._shown = taken
                self._write(self._line(taken))

    def _watch(self) -> None:
        while not self._end.wait(0.25):
            self.look()

    def _close(self, failed: bool = False) -> None:
        taken = self._clock() - self._begun
        if self._stage and self._shown and not failed and self._done >= self._total:
            self._write(f"{self._stage}: done in {_seconds(taken)}")
        self._stage = ""

    def _line(self, taken: float) -> str:
        if not self._total:
            return f"{self._stage} ... {_seconds(taken)}"
        left = f", {_seconds(taken / self._done * (self._total - self._done))} left" if self._done else ""
        share = f"{self._done:,} of {self._total:,} ({self._done / self._total:.0%})"
        return f"{self._stage}: {share}, {_seconds(taken)}{left}"


def _seconds(time: float) -> str:
    minutes, seconds = divmod(round(time), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


@contextmanager
def lines_in_logs() -> Iterator[None]:
    """Let the bars of libraries write lines, as seldom as ours, where stderr is no terminal."""
    if _on_screen():
        yield
        return
    # Read while tqdm is imported. Another process, such as `axolotl train`, gets none of them.
    settings = {"TQDM_DELAY": f"{FIRST}", "TQDM_MININTERVAL": f"{EVERY}"}
    before = dict(os.environ)
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import tqdm  # noqa: F401

    for name in settings.keys() - before.keys():
        del os.environ[name]
    found = sys.stderr
    sys.stderr = _WithoutReturns(found)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stderr = found


class _WithoutReturns:
    """A stream that hands what begins with a carriage return, the state of a bar, to `show`, by default as a line."""

    def __init__(self, stream: TextIO, show: Callable[[str], object] | None = None) -> None:
        self._stream, self._show, self._behind_bar = stream, show, False
        self.written = float("-inf")
        """When a text was last written, by `time.monotonic`."""

    def write(self, text: str) -> int:
        size = len(text)
        if text:
            self.written = time.monotonic()
        if text.startswith("\r"):
            state = text.strip()
            self._behind_bar = True
            if self._show is not None:
                self._show(state)
            text = f"{state}\n" if state and self._show is None else ""
        elif self._behind_bar and text:
            self._behind_bar = False
            text = text.removeprefix("\n")  # the end of the bar's line
        self._stream.write(text)
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
