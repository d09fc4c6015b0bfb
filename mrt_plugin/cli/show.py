"""Show results on stdout, and progress and errors on stderr."""

import json
import logging
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.table import Table

from mrt_plugin.mistakes import MENDABLE, message_of, wants_traceback

if TYPE_CHECKING:
    from mrt_plugin.planning.fit import InverseFit


Made = Callable[[Any], Any]

NOISY = ("bitsandbytes", "fla", "kernels", "peft", "torchao", "torch.utils._pytree")
"""Libraries whose messages at the start concern no user of a command."""


def say(*lines: str) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in lines:
        console.print(line)


def command_line(command: str, *arguments: Any, **options: Any) -> str:
    """Return a command that can be pasted into a shell. True is a switch; None and False are left out.

    Example:

    >>> command_line("mrt audit", "my chosen.jsonl", pool="pool.jsonl", load_in_4bit=True)
    "mrt audit 'my chosen.jsonl' --pool pool.jsonl --load-in-4bit"
    """
    parts = [command, *(shlex.quote(str(argument)) for argument in arguments if argument is not None)]
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None and one is not False:
                parts.append(f"--{name.replace('_', '-')}")
                parts += [] if one is True else [shlex.quote(str(one))]
    return " ".join(parts)


class _ToStderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr as it is then: a display of progress may stand in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def log_to_stderr(without: Sequence[str] = ()) -> None:
    """Show the package's own log messages, which report counts and decisions.

    Of the loggers in `without` only warnings: the command shows the rest as its result.
    """
    ours = logging.getLogger("mrt_plugin")
    if not ours.handlers:
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        handler.addFilter(lambda record: record.levelno > logging.INFO or record.name not in without)
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)


def silence_libraries() -> None:
    """Hide what other libraries say when they start: kernels that they miss, files that they look for on a hub."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
    # Names that transformers has deprecated, and that libraries above it still use.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")


def as_json(result: Any) -> None:
    """Write a result as one JSON document on stdout. Refuse NaN."""
    print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))


json_ready = partial(to_jsonable_python, inf_nan_mode="null")
"""Return dataclasses as dictionaries, tuples as lists and paths as strings. Infinity and NaN become None."""


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, *, zeros: bool = True
) -> None:
    """Write a table with the first column left-aligned and the others right-aligned. Without `zeros`, leave out
    columns in which every cell is 0."""
    if not zeros:
        some = [place for place in range(len(columns)) if any(row[place] != "0" for row in rows)]
        columns, rows = [columns[place] for place in some], [[row[place] for place in some] for row in rows]
    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        shown.add_row(*row)
    Console(highlight=False, markup=False).print(shown)


def with_error(value: float, error: float | None) -> str:
    """Return a number with its standard error, which is NaN or None where it needs more runs."""
    if error is None:
        return f"{value:.4f}"
    return f"{value:.4f} ± {'?' if math.isnan(error) else f'{error:.4f}'}"


def show_fits(fits: Mapping[str, "InverseFit"]) -> None:
    """Write the table of fits of loss = a + b/K, one row per arm, and what to make of it."""
    rows = []
    for arm, fit in fits.items():
        a, b = with_error(fit.a, fit.a_error), with_error(fit.b, fit.b_error)
        r_squared = "" if math.isnan(fit.r_squared) else f"{fit.r_squared:.3f}"
        rows.append((arm, f"{fit.runs}", a, b, r_squared, f"{fit.mse:.2e}"))
    table(("arm", "runs", "a (endless K)", "b (what K = 1 loses)", "R²", "MSE"), rows, title="loss = a + b/K")
    say("That held-out loss follows 1/K is an assumption: look at R², and at the residuals of your largest K.")


def finish(given: Any, found: Any, document: Made, show: Made, page: Made | None = None, extras: str = "") -> None:
    """Show a result, or write it as JSON for `--json`. Also write its page for `--report`."""
    report = None if page is None else given.report
    if page is not None and report is not None:
        from mrt_plugin.groups.write import write_text

        write_text(report, page(found))
    if given.json:
        return as_json(document(found))
    show(found)
    if report is not None:
        say(f"\nThe same with pictures{extras}: {report}")


@contextmanager
def plain_errors(traceback: bool = False) -> Iterator[None]:
    """Turn an error that the user can fix into one message and exit status 1. Others keep their traceback."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except MENDABLE as error:
        if traceback or wants_traceback():
            raise
        raise_plainly(message_of(error), error)


def raise_plainly(message: str, cause: Exception | None = None) -> NoReturn:
    """Write one error message and exit with status 1."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"error: {message}")
    raise typer.Exit(1) from cause
