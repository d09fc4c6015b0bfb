"""Run many runs in sequence, seed by seed, so that a stopped sequence has complete seeds with all arms."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from recipes.claim.arms import ARMS
from recipes.claim.records import key_of, read_records, write_records
from recipes.claim.train import RunKey, Scale, Setting, train_run

LENGTHS = (64, 256, 1024)
SEEDS = tuple(range(10))
TUNING_LENGTH = 64
TUNING_SEEDS = (1000, 1001)
"""Seeds of the tuning split, with other worlds, data and base models than the main runs."""
RATES = (1e-3, 3e-3, 1e-2)
STEP_PAIRS = {1: (4, 16), 2: (4, 16), 4: (4, 16), 8: (8, 16)}
"""Pairs per step to try, by K: a small number that holds at least one group, and a larger one."""


def tuning_keys(seeds: Sequence[int] = TUNING_SEEDS) -> list[RunKey]:
    """Return the runs of every arm at every setting, on the tuning split."""
    return [
        RunKey(TUNING_LENGTH, name, seed, Setting(rate, pairs))
        for seed in seeds
        for name, arm in ARMS.items()
        for pairs in STEP_PAIRS[arm.k]
        for rate in RATES
    ]


CALM = {name: Setting(1e-3, 8 if arm.k == 8 else 4) for name, arm in ARMS.items() if name != "k1_epochs"}
"""One learning rate for all arms, with the fewest pairs per step tuned. This check was added after the main runs."""
SINGLE = Setting(1e-3, 1)
"""One pair per step. A check found it better for K = 1 on few prompts than the tuned settings."""


def check_keys(lengths: Sequence[int] = LENGTHS, seeds: Sequence[int] = SEEDS) -> list[RunKey]:
    """Return the runs that were added after the first main runs were seen.

    On the tuning split: fewer pairs per step for K = 1, and the tuning of two arms at the longest prompts. On the main
    seeds: the runs that `CALM` needs in addition to the main runs, and K = 1 at `SINGLE`.
    """
    long = max(lengths)
    small = [Setting(rate, pairs) for pairs in (1, 2) for rate in (3e-4, 1e-3, 3e-3)]
    return [
        *(RunKey(TUNING_LENGTH, "k1", seed, setting) for seed in TUNING_SEEDS for setting in small),
        *(RunKey(length, name, seed, CALM[name]) for seed in seeds for length in lengths for name in CALM),
        *(RunKey(length, "k1", seed, SINGLE) for length in sorted(lengths, reverse=True) for seed in seeds),
        *(
            RunKey(long, name, seed, Setting(rate, pairs))
            for seed in TUNING_SEEDS
            for name in ("k1", "k4")
            for pairs in STEP_PAIRS[ARMS[name].k]
            for rate in RATES
        ),
    ]


def main_keys(
    chosen: Mapping[str, Sequence[Setting]], lengths: Sequence[int] = LENGTHS, seeds: Sequence[int] = SEEDS
) -> list[RunKey]:
    """Return the runs of every seed, length and arm, at the settings chosen by tuning."""
    return [
        RunKey(length, name, seed, setting)
        for seed in seeds
        for length in lengths
        for name in ARMS
        for setting in chosen[name]
    ]


def run_all(
    keys: Iterable[RunKey],
    path: Path,
    scale: Scale,
    *,
    besides: Collection[RunKey] = (),
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    stop_at: float | None = None,
) -> int:
    """Run the runs that are not in the file yet, and add a line after each run.

    Args:
        keys: keys of the runs, in order.
        path: the JSONL file.
        scale: size of the runs.
        besides: runs that another file already has.
        progress: called with a run's name, the runs done and the total number of runs.
        stop_at: time (`time.time()`) after which no run is started.

    Returns:
        The number of missing runs.
    """
    keys = list(keys)
    records = read_records(path)
    done = {key_of(record) for record in records} | set(besides)
    missing = [key for key in keys if key not in done]
    for number, key in enumerate(missing):
        if stop_at is not None and time.time() >= stop_at:
            return len(missing) - number
        progress(f"P = {key.length}, {key.arm}, seed {key.seed}", len(keys) - len(missing) + number, len(keys))
        records.append(train_run(key, scale, path.parent / "bases")[0])
        write_records(path, records)
    progress("done", len(keys), len(keys))
    return 0
