"""Peak memory of reading flat rows, one per response, that are regrouped by prompt.

`python -m recipes.benchmarks.regroup` writes a JSONL file of invented rows in a temporary folder and reads it. Each
prompt recurs once in every round over all prompts, so that no group is complete before the last round.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import datasets

from mrt_plugin import load_groups

MIB = 2**20


def main() -> None:
    """Print the size of the file, the peak of the process before and after reading, and the time of its processor."""
    parser = argparse.ArgumentParser(prog="python -m recipes.benchmarks.regroup", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--characters", type=int, default=600, help="of a response")
    parser.add_argument("--folder", help="where to write the file and the groups, by default the system's")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        datasets.config.HF_DATASETS_CACHE = Path(name) / "cache"
        path = Path(name) / "flat.jsonl"
        write(path, args.rows, args.prompts, args.characters)
        before, start = peak(), time.process_time()
        groups = load_groups(path)
        spent, after = time.process_time() - start, peak()
        assert groups.num_rows == min(args.rows, args.prompts)
        assert groups[0]["responses"][-1].startswith("Answer ")
        size = path.stat().st_size / MIB
        print(f"{args.rows:,} rows of {args.prompts:,} prompts, {size:,.0f} MiB of JSONL")
        print(f"peak of the process: {before:,.0f} MiB before, {after:,.0f} MiB after; {spent:,.0f} s of one core")


def write(path: Path, rows: int, prompts: int, characters: int) -> None:
    filler = "and then it follows that " * (characters // 25)
    with path.open("w") as file:
        for row in range(rows):
            number = row * 7919 % prompts  # the order of prompts is mixed, and the same in every round
            line = {"prompt": f"What is {number} plus one?", "completion": f"Answer {row}: {filler}"}
            file.write(json.dumps(line) + "\n")


def peak() -> float:
    """Return the largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
