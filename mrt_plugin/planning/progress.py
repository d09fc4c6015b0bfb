"""Report the progress of a long computation, or hide that of many small ones."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import datasets

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the total."""


def counting(progress: Progress, stage: str, total: int) -> Callable[[int], None]:
    """Return a function that adds finished steps, and reports their sum."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(stage, done, total)

    return advance


@contextmanager
def quiet() -> Iterator[None]:
    """Show only errors: no progress bars of datasets, and no other messages of this package, transformers and TRL."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    levels = {logger: logger.level for logger in map(logging.getLogger, ("mrt_plugin", "transformers", "trl"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
