"""Peak memory of an optimizer step whose row is a tree, against rows of as many tokens where nothing is shared.

`python -m recipes.benchmarks.memory` trains the random Llama of `mrt bench` on groups that begin with one system text.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mrt_plugin.bench.model import BenchModel, ModelChoice, load_model
from mrt_plugin.bench.probes import MIB, PeakMemory
from mrt_plugin.bench.turn import Arm, all_arms, make_data, take_turn
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import build_group_row, sequences_of
from mrt_plugin.layout.tree import build_tree

SHARED = Arm("tree", False, (("layout", "shared_prefix"), ("prefix_backend", "sdpa")))
EXPANDED = Arm("pairs", False, (("layout", "expanded"),))
TRL = [arm for arm in all_arms(()) if arm.trl][-1]


def main() -> None:
    """Print the measurements as text, or with `--json` as JSON."""
    parser = argparse.ArgumentParser(prog="python -m recipes.benchmarks.memory", description=__doc__)
    parser.add_argument("--shape", default="2048,64,64,4", help="S,P,R,K: tokens of the system text, prompt, response")
    parser.add_argument("--groups", type=int, default=8, help="groups in the row")
    parser.add_argument("--model", help="a path or hub id instead of the random Llama")
    parser.add_argument("--lora", action="store_true", help="train LoRA adapters only")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 or auto")
    parser.add_argument("--vocabulary", type=int, default=1000, help="of the random Llama")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    system, prompt, response, k = (int(part) for part in args.shape.split(","))
    choice = ModelChoice(args.model, vocabulary=args.vocabulary, dtype=args.dtype, lora=args.lora)
    shape = system, prompt, response, k, args.groups
    found = {how: compare(choice, args.device, shape, how == "checkpointed") for how in ("plain", "checkpointed")}
    if args.json:
        print(json.dumps(found))
        return
    print(f"{found['plain']['tokens']:,} tokens; peak of a step in MiB (without weights and optimizer state):")
    for name, (peak, step) in found["plain"]["rows"].items():
        again, less = found["checkpointed"]["rows"][name]
        print(f"{name:24} {peak:9.1f} ({step:7.1f})  with gradient checkpointing {again:9.1f} ({less:7.1f})")


def compare(
    choice: ModelChoice, device: str, shape: tuple[int, int, int, int, int], gradient_checkpointing: bool
) -> dict[str, Any]:
    """Return the tokens, and for each row the peak memory of a step and its part beside weights and optimizer, in MiB.

    `shape` is S, P, R, K and the number of groups.
    """
    system, prompt, response, k, groups = shape
    draw = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return [int(token) for token in draw.integers(3, choice.vocabulary, count)]

    def pair(untrained: list[int], trained: int) -> Pair:
        return Pair(untrained + tokens(trained), [False] * len(untrained) + [True] * trained)

    text = tokens(system)
    prompts = [text + tokens(prompt) for _ in range(groups)]
    tree = [[pair(start, response) for _ in range(k)] for start in prompts]
    sequences = [sequence for group in tree for sequence in sequences_of(build_group_row(group))]
    total = len(build_tree(sequences).input_ids)

    def alone(length: int) -> list[list[Pair]]:
        """Return pairs of `length` tokens that share nothing, the last of them with what remains of the row."""
        count = total // length
        lengths = [length] * (count - 1) + [total - length * (count - 1)]
        return [[pair(tokens(size - response), response)] for size in lengths]

    rows = {
        "tree": (SHARED, tree),
        "pairs of P + R": (EXPANDED, alone(prompt + response)),
        "pairs of S + P + R": (EXPANDED, alone(system + prompt + response)),
        "one sequence": (EXPANDED, alone(total)),
        "one sequence, TRL": (TRL, alone(total)),
    }
    trained = load_model(choice, device, gradient_checkpointing=gradient_checkpointing)
    return {"tokens": total, "rows": {name: _peak(trained, arm, data) for name, (arm, data) in rows.items()}}


def _peak(trained: BenchModel, arm: Arm, groups: Sequence[Sequence[Pair]]) -> tuple[float, float]:
    probe = PeakMemory()
    take_turn(arm, trained, make_data(groups, len(groups)), len(groups), steps=2, probe=probe)
    return (probe.resting + probe.step) / MIB, probe.step / MIB


if __name__ == "__main__":
    main()
