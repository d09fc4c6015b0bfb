"""PRO and SFT as responses grow, prompts against responses, and the linear law, on the demo's known truth."""

import argparse
import sys
from pathlib import Path

import torch

from recipes.alignment import plans
from recipes.alignment.augmentation import generate
from recipes.alignment.report import write_report
from recipes.objectives.__main__ import show
from recipes.objectives.train import read, run_all
from recipes.objectives.tuning import tuned

STEPS = ("tune", "responses", "prompts", "law", "augment", "report")

EPILOG = """\
steps; tune comes first, and each goes on where it was stopped:
  tune       the learning rates of SFT and PRO, by expected score on worlds of their own
  responses  PRO on 2, 3, 4 and 6 responses, SFT on the best of them, SFT on all of them
  prompts    PRO on 480 annotations: 240 prompts x 2, 160 x 3, 120 x 4
  law        the score of PRO against d = r * n^p of its prompts
  augment    60 prompts, and as many generated ones: kept by the filter, dropped by it, or real ones
  report     the tables and the pictures

example:
  python -m recipes.alignment tune --output results/alignment
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one step."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.alignment",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--output", type=Path, default=Path("results/alignment"), help="folder of everything made")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.step == "tune":
        run_all(plans.tuning(), given.output / "tuning.jsonl", show)
        return 0
    rates = tuned(read(given.output / "tuning.jsonl"), by="reward")
    if given.step == "report":
        print(write_report(rates, given.output))
        return 0
    if given.step == "augment":
        folder = given.output / "augment"
        for seed in plans.SEEDS:
            print(seed, generate(seed, folder))
        run_all(plans.augment(rates, folder), given.output / "augment.jsonl", show)
        return 0
    runs = {"responses": plans.responses, "prompts": plans.prompts, "law": plans.law}[given.step](rates)
    run_all(runs, given.output / f"{given.step}.jsonl", show)
    return 0


if __name__ == "__main__":
    sys.exit(main())
