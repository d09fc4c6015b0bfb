"""Run Python commands in processes of their own, without importing the heavy libraries each time.

A server imports the libraries once and forks for every command. A command gets its own arguments, folder, environment,
standard streams and limits. What is read while a library is imported stays as it was (but for HF_DATASETS_CACHE): such
a command needs `subprocess`.

A shell script runs commands so too: `python processes.py run ADDRESS -c CODE ...`, with the address of `server`.
"""

import atexit
import contextlib
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
LIBRARIES = ("sklearn.feature_extraction.text", "transformers", "trl", "peft", "mrt_plugin.cli", "mrt_plugin.trainer")
OTHERS = (
    "sklearn.feature_extraction.text",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.sft_trainer",
    "peft",
    "typer",
    "rich.table",
)
"""What the package imports: for commands on a copy of the package, which none may have imported before."""
AXOLOTL = ("mrt_plugin.cli", "axolotl.cli.main", "axolotl.train", "axolotl.cli.train", "axolotl.cli.evaluate")


class Started:
    """A command under way, with what `subprocess.Popen` offers of it."""

    def __init__(self, connection: socket.socket, folder: Any) -> None:
        self._folder, self._lines = folder, connection.makefile("r")
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def text(self, stream: str) -> str:
        """What the command has written so far to `stdout` or `stderr`."""
        return (Path(self._folder.name) / stream).read_text(errors="replace")

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._lines], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        if self.returncode is None:
            if not select.select([self._lines], [], [], timeout)[0]:
                self.kill()
                raise TimeoutError(f"the command ran for over {timeout} s: {self.text('stderr')[-3000:]}")
            self.returncode = os.waitstatus_to_exitcode(int(self._lines.readline()))
        return self.returncode

    def wait_for(self, line: str, timeout: float = 120) -> None:
        """Wait until the command has printed this line."""
        deadline = time.monotonic() + timeout
        while f"{line}\n" not in self.text("stdout"):
            assert self.poll() is None, self.text("stderr")[-3000:]
            assert time.monotonic() < deadline, f"{line!r} was not printed"
            time.sleep(0.005)

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_python(
    arguments: Sequence[str | Path],
    *,
    cwd: str | Path | None = None,
    env: dict[str, str] | None = None,
    input: str = "",
    file_size: int | None = None,
    libraries: tuple[str, ...] = LIBRARIES,
    address: str | None = None,
) -> Started:
    """Start `python ARGUMENTS`: `-c CODE ...`, `-m MODULE ...` or `SCRIPT ...`.

    Args:
        arguments: as after `python` on a command line.
        cwd: its folder.
        env: its environment; by default that of the tests.
        input: what it reads from its standard input.
        file_size: the most bytes that a file of it may have, as on a disk that is full.
        libraries: what the server has imported.
        address: a server that runs already.
    """
    folder = tempfile.TemporaryDirectory(prefix="command")
    for stream, text in (("stdin", input), ("stdout", ""), ("stderr", "")):
        (Path(folder.name) / stream).write_text(text)
    request = {
        "arguments": [str(argument) for argument in arguments],
        "cwd": str(cwd or Path.cwd()),
        "env": dict(os.environ) if env is None else env,
        "folder": folder.name,
        "file_size": file_size,
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address or server(libraries))
    connection.sendall(json.dumps(request).encode() + b"\n")
    return Started(connection, folder)


def run_python(
    arguments: Sequence[str | Path], *, timeout: float = 600, **settings: Any
) -> "subprocess.CompletedProcess[str]":
    """Run `python ARGUMENTS` to its end. See `start_python`."""
    started = start_python(arguments, **settings)
    status = started.wait(timeout)
    return subprocess.CompletedProcess(list(arguments), status, started.text("stdout"), started.text("stderr"))


def gloo(processes: int, script: str, *arguments: str) -> None:
    """Run a script of the tests in `processes` processes, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    for rank in range(processes):
        env = {name: str(value) for name, value in {**group, "RANK": rank, "LOCAL_RANK": rank}.items()}
        ranks.append(start_python([str(TESTS / "helpers" / script), *arguments], env={**os.environ, **env}))
    try:
        for place in ranks:
            assert place.wait() == 0, place.text("stderr")[-5000:]
    finally:
        for place in ranks:
            place.kill()


_KEPT: list[Any] = []
"""The folders of servers. From Python 3.13 on, a fork by multiprocessing forgets what is to be called at its exit, and
a folder that only such a call knows would be removed there and then."""


@cache
def server(libraries: tuple[str, ...] = LIBRARIES) -> str:
    """Start a server, and return its address, the path of a socket. It ends when this process does."""
    folder = tempfile.TemporaryDirectory(prefix="server")
    address = str(Path(folder.name) / "socket")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))}
    started = subprocess.Popen(
        [sys.executable, __file__, "serve", address, *libraries],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
        text=True,
    )
    _KEPT.append(folder)
    assert started.stdout is not None
    assert "ready\n" in started.stdout, f"cannot import {', '.join(libraries)}"
    atexit.register(lambda: (started.terminate(), started.wait(), folder.cleanup()))
    return address


def _serve(address: str, libraries: Sequence[str]) -> None:
    for library in libraries:
        __import__(library)
    gc.freeze()  # a command's garbage collections need not visit what the libraries made
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        readable, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in readable:
            return
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _supervise(connection)
        connection.close()


def _supervise(connection: socket.socket) -> None:
    """Fork once more for the command, and send its process id and its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(connection.makefile("r").readline())
    child = os.fork()
    if child == 0:
        connection.close()
        _run(request)
    with contextlib.suppress(OSError):
        connection.sendall(f"{child}\n".encode())
        connection.sendall(f"{os.waitpid(child, 0)[1]}\n".encode())
    os._exit(0)


def _run(request: dict[str, Any]) -> None:
    status = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the children of a background job ignore it
    try:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND
            os.dup2(os.open(Path(request["folder"]) / name, mode), number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[1:1] = [path for path in given if path not in sys.path]
        if "datasets" in sys.modules and "HF_DATASETS_CACHE" in os.environ:
            sys.modules["datasets"].config.HF_DATASETS_CACHE = Path(os.environ["HF_DATASETS_CACHE"])
        if request["file_size"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
        status = _status(request["arguments"])
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(status)


def _status(arguments: list[str]) -> int:
    kind, *rest = arguments
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        if kind == "-c":
            sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
            exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
        elif kind == "-m":
            sys.argv, sys.path[0] = list(rest), os.getcwd()
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            script = Path(kind).resolve()
            sys.argv, sys.path[0] = list(arguments), str(script.parent)
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    role, place, *rest = sys.argv[1:]
    if role == "serve":
        _serve(place, rest)
    else:
        done = run_python(rest, address=place)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        sys.exit(done.returncode)
