"""What the subcommands share: results on stdout, progress and errors on stderr."""

import dataclasses
import errno
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


def say(text: str) -> None:
    """Write a line for people."""
    Console(highlight=False, markup=False, soft_wrap=True).print(text)


def log_to_stderr() -> None:
    """Show the package's own messages: the counts and decisions that a user should know of."""
    ours = logging.getLogger("mrt_plugin")
    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)


def quiet_libraries() -> None:
    """Hide what libraries say at import about kernels that are absent here; nothing depends on them."""
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def as_json(result: Any) -> None:
    """Write a result for machines: one JSON document on stdout, NaN refused."""
    print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))


def json_ready(value: Any) -> Any:
    """Return dataclasses as dictionaries and tuples as lists. Infinity and NaN become None."""
    if dataclasses.is_dataclass(value):
        return {item.name: json_ready(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: json_ready(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Write a table: the first column to the left, the others to the right."""
    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        shown.add_row(*row)
    Console(highlight=False, markup=False).print(shown)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what the user can mend into one message and exit status 1; everything else keeps its traceback."""
    quiet_libraries()
    try:
        yield
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise_plainly(f"{error}{_remedy(error)}", error)


def raise_plainly(message: str, cause: Exception | None = None) -> NoReturn:
    """Write one error message and exit with status 1."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"error: {message}")
    raise typer.Exit(1) from cause


def _remedy(error: Exception) -> str:
    """What to do where a library wrote to a full disk: it says neither where nor what then."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if not isinstance(error, OSError) or (error.errno not in full and "No space left" not in str(error)):
        return ""
    import datasets

    return (
        ". Free some space and run the same command again: what was finished is kept. Besides its results a command "
        f"writes to {datasets.config.HF_DATASETS_CACHE} (HF_DATASETS_CACHE), to the cache of scores (MRT_CACHE) and "
        "to the folder for temporary files (TMPDIR)."
    )


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per stage on stderr; the block gets a function of (stage, done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield update
