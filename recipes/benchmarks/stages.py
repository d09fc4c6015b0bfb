"""What each stage from a pool file to a selected file costs, on a generated pool: `docs/scale.md` is computed from it.

`python -m recipes.benchmarks.stages` prints processor minutes and bytes per million prompts. It is the processor time
of one process, not time on the clock: other work on the machine disturbs it little.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset

from mrt_plugin.curation.config import DEFAULT, parse_rules
from mrt_plugin.curation.near import NearIndex, prompt_signatures
from mrt_plugin.curation.rule import GroupRule, Tools
from mrt_plugin.curation.run import judge_batch
from mrt_plugin.groups import load_groups
from mrt_plugin.groups.messages import response_text
from mrt_plugin.groups.write import write_groups
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.selection import select, select_indices

MILLION = 1_000_000
PROMPT_WORDS, RESPONSE_WORDS = 40, 180
"""About 55 and 240 tokens: the means of real chat pools."""


def main() -> None:
    """Print the measurements as text, or with `--json` as JSON."""
    parser = argparse.ArgumentParser(prog="python -m recipes.benchmarks.stages", description=__doc__)
    parser.add_argument("--groups", type=int, default=5000, help="prompts of the generated pool")
    parser.add_argument("--candidates", type=int, default=16, help="responses per prompt")
    parser.add_argument("-k", type=int, default=4, help="responses kept")
    parser.add_argument(
        "--embedder", help="also embed with this sentence-transformers model (few prompts: it is slow)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    found = measure(args.groups, args.candidates, args.k, args.embedder)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{args.groups:,} prompts x {args.candidates} responses, k = {args.k}; per million prompts:")
    for stage, spent in found["cpu_minutes"].items():
        print(f"  {stage:40} {spent:9.1f} processor minutes")
    for what, size in found["gigabytes"].items():
        print(f"  {what:40} {size:9.2f} GB")
    print(f"  {'peak memory of this process':40} {found['peak_memory_gb']:9.2f} GB (not scaled)")


def measure(count: int, candidates: int, k: int, embedder: str | None = None) -> dict[str, Any]:
    """Measure processor minutes and gigabytes per million prompts, by stage."""
    minutes: dict[str, float] = {}
    sizes: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any], prompts: int = count) -> Any:
        began = time.process_time()
        result = work()
        minutes[stage] = (time.process_time() - began) / prompts * MILLION / 60
        return result

    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        pool = Path(folder) / "pool.jsonl"
        with pool.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in generated(count, candidates))
        sizes["pool (JSONL)"] = pool.stat().st_size
        groups = timed("read and check", lambda: load_groups(pool))
        sizes["pool (Arrow, uncompressed)"] = sum(Path(file["filename"]).stat().st_size for file in groups.cache_files)
        for rule in parse_rules([*DEFAULT, "duplicate_responses"]):
            if isinstance(rule, GroupRule):
                timed(f"rule {rule.name}", partial(_judge, groups, rule))
        signatures = timed("MinHash of prompts", lambda: prompt_signatures(groups))
        sizes["signatures"] = signatures.nbytes
        timed("LSH index of prompts", lambda: _index(signatures))
        timed("random_k", lambda: select_indices(groups, "random_k", k=k))
        timed("diverse_best_k, lexical", lambda: select_indices(groups, "diverse_best_k", k=k))
        few = groups.select(range(min(count, 2000)))
        timed("diverse_best_k, vectors given", lambda: _given(few, k), len(few))
        chosen = timed("keep the selected", lambda: select(groups, "random_k", k=k))
        minutes["keep the selected"] -= minutes["random_k"]
        for ending in (".jsonl", ".parquet"):
            written = timed(f"write {ending}", partial(write_groups, chosen, Path(folder) / f"c{ending}"))
            sizes[f"selected ({ending[1:]})"] = written.bytes
        if embedder is not None:
            model = load_embedder(embedder, score_cache=Path(folder) / "vectors")
            texts = [response_text(text) for responses in groups[:8]["responses"] for text in responses]
            model(["Loading is not counted."])
            timed(f"embed with {Path(embedder).name}", lambda: model(texts), 8)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "cpu_minutes": minutes,
        "gigabytes": {what: size / count * MILLION / 1e9 for what, size in sizes.items()},
        "peak_memory_gb": peak / 1e9,
    }


def generated(count: int, candidates: int) -> Iterator[dict[str, Any]]:
    """Generate groups of random words with the lengths of a chat pool. No two prompts are similar."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(draw.choice(letters, draw.integers(2, 9))) for _ in range(4000)])

    def text(mean: int) -> str:
        chosen = draw.choice(words, max(3, round(mean * draw.lognormal(-0.18, 0.6))))
        sentences = [" ".join(chosen[start : start + 14]).capitalize() + "." for start in range(0, len(chosen), 14)]
        return "\n\n".join(" ".join(sentences[start : start + 4]) for start in range(0, len(sentences), 4))

    for number in range(count):
        responses = [text(RESPONSE_WORDS) for _ in range(candidates)]
        yield {
            "id": str(number),
            "prompt": text(PROMPT_WORDS),
            "responses": responses,
            "scores": draw.random(candidates).round(4).tolist(),
        }


def _judge(groups: Dataset, rule: GroupRule) -> None:
    for batch in groups.iter(batch_size=64):
        judge_batch(batch, rules=[rule], tools=Tools())  # type: ignore[arg-type]


def _index(signatures: np.ndarray) -> None:
    index = NearIndex(0.8)
    for number, signed in enumerate(signatures):
        index.near(signed)
        index.insert(number, signed)


def _given(groups: Dataset, k: int) -> None:
    """Run a selection with vectors of 384 numbers that are almost free to compute."""
    table = np.random.default_rng(0).normal(size=(4096, 384))

    def look_up(texts: list[str]) -> np.ndarray:
        return table[[len(text) * 31 % 4096 for text in texts]]

    select_indices(groups, "diverse_best_k", k=k, embedder=look_up)


if __name__ == "__main__":
    main()
