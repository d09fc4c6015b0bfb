"""NLL, DFT, GEM and PRO on the known truth of the demo, over ten seeds, for docs/objectives-measured.md."""

import argparse
import sys
from pathlib import Path

import torch

from recipes.objectives.report import write_report
from recipes.objectives.train import Run, read, run_all
from recipes.objectives.tuning import tuned

OBJECTIVES = ("nll", "dft", "gem", "pro")
RATES = (1.25e-4, 5e-4, 2e-3, 8e-3)
TUNING_SEEDS = (1000, 1001)
"""Worlds of their own, so that no setting is chosen on what is reported."""

EPILOG = """\
steps, in this order; each goes on where it was stopped:
  tune      the learning rate of every objective, by KL on worlds of its own
  run       the main runs
  report    the table and the picture

example:
  python -m recipes.objectives tune --output results/objectives
"""


def fixed(objective: str, rate: float, seed: int) -> Run:
    """Return a run of the comparison: K = 4 of 8 at random, 160 prompts, 8 epochs."""
    return Run(objective, "random_k", 4, 160, 160, rate, seed)


def main(arguments: list[str] | None = None) -> int:
    """Run one step."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.objectives",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("step", choices=("tune", "run", "report"))
    parser.add_argument("--output", type=Path, default=Path("results/objectives"), help="folder of everything made")
    parser.add_argument("--seeds", type=int, default=10, help="run: seeds 0 to this less one")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tuning, runs = given.output / "tuning.jsonl", given.output / "runs.jsonl"
    if given.step == "tune":
        run_all(
            [fixed(name, rate, seed) for name in OBJECTIVES for rate in RATES for seed in TUNING_SEEDS], tuning, show
        )
        return 0
    rates = tuned(read(tuning), by="kl")
    if given.step == "run":
        wanted = [fixed(name, rates[name], seed) for name in OBJECTIVES for seed in range(given.seeds)]
        base = [Run("none", "random_k", 1, 0, 0, 0.0, seed) for seed in range(given.seeds)]
        run_all([*base, *wanted], runs, show)
        return 0
    print(write_report(read(runs), read(tuning), given.output))
    return 0


def show(stage: str, done: int, total: int) -> None:
    """Print the progress as a line of its own."""
    print(f"{done}/{total} {stage}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
