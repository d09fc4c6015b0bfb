"""Show what the user can mend as one message, without a traceback. `MRT_TRACEBACK=1` brings the traceback back."""

import dis
import errno
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

MENDABLE = (ValueError, OSError, ImportError, RuntimeError)
"""The classes of errors that have a message for the user. Others are mistakes of the program."""

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PACKAGE = str(Path(__file__).parent) + os.sep


def wants_traceback() -> bool:
    return os.environ.get("MRT_TRACEBACK", "0") not in ("", "0")


def message_of(error: BaseException) -> str:
    """Return the message of an error, with a remedy if the disk is full."""
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and (error.errno in _FULL_DISK or "No space left" in message):
        import datasets

        message += (
            ". Free some space and run the same command again: finished work is kept. Besides its results, a "
            f"command writes to {datasets.config.HF_DATASETS_CACHE} (HF_DATASETS_CACHE), to the cache of scores "
            "(MRT_CACHE) and to the folder for temporary files (TMPDIR)."
        )
    return message


def show_mistakes_plainly() -> None:
    """Give uncaught errors that this package raised on purpose one line in place of a traceback, in this process.

    For processes of another program, such as Axolotl. Every other error is shown as before.
    """
    if not isinstance(sys.excepthook, partial) or sys.excepthook.func is not _show:
        sys.excepthook = partial(_show, sys.excepthook)


def _show(otherwise: Any, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    ours = None if wants_traceback() else next(filter(_is_raised_here, _chain(error)), None)
    if ours is None:
        return otherwise(kind, error, trace)
    rank = os.environ.get("RANK", "0")
    place = "" if rank == "0" else f"[process {rank}] "
    sys.stdout.flush()
    print(f"{place}error: {message_of(ours)}", file=sys.stderr, flush=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from, as far as all have a message for the user."""
    while isinstance(error, MENDABLE):
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_raised_here(error: BaseException) -> bool:
    """Return whether a `raise` statement of this package raised an error, here or in a process of a pool."""
    remote = type(error.__cause__).__name__ == "RemoteTraceback" and str(error.__cause__)
    if remote:
        files = re.findall(r'^  File "(.+?)", line \d+', remote, re.MULTILINE)
        return bool(files) and files[-1].startswith(_PACKAGE)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    # A call into C that fails (a tensor of a wrong shape, say) has its last frame here too, but no statement `raise`.
    raised = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return raised and code.co_filename.startswith(_PACKAGE)
