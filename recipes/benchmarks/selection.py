"""How fast responses are chosen: the batched greedy against its definition, and pools streamed from disk.

`python -m recipes.benchmarks.selection` measures the first; add `--stream 100000` for the second.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value

from mrt_plugin.options import SelectionOptions
from mrt_plugin.scoring.cache import ScoreCache, entry_key
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.selection.decide import DECISION, choose_batch
from mrt_plugin.selection.facility_location import FLOOR, diverse_best_k, quality
from mrt_plugin.selection.run import select_indices


def main() -> None:
    """Print the measurements as text, or with `--json` as JSON."""
    parser = argparse.ArgumentParser(prog="python -m recipes.benchmarks.selection", description=__doc__)
    parser.add_argument("--candidates", type=int, default=64, help="N, responses per prompt (streaming: 16)")
    parser.add_argument("--dimension", type=int, default=384, help="numbers in an embedding")
    parser.add_argument("-k", type=int, default=8, help="responses kept (streaming: 4)")
    parser.add_argument("--pools", type=int, default=1024, help="prompts for the comparison")
    parser.add_argument("--stream", type=int, default=0, help="prompts to stream from a cache on disk instead")
    parser.add_argument("--num-proc", type=int, default=None, help="streaming: processes")
    parser.add_argument("--directory", type=Path, help="streaming: where to put the cache (about 27 kB per prompt)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if args.stream:
        found = stream(args.stream, 16, args.dimension, 4, num_proc=args.num_proc, directory=args.directory)
    else:
        found = compare(args.pools, args.candidates, args.dimension, args.k)
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:32} {value:,.4g}" if isinstance(value, float) else f"{name:32} {value:,}")


def compare(pools: int, candidates: int, dimension: int, k: int, rounds: int = 5) -> dict[str, Any]:
    """Measure prompts per second (medians) of the definition in a NumPy loop, the batched selector and `select`.

    The loop starts from embeddings [N, dim]. The selector starts from the columns of a batch, and `select` from a
    dataset; an embedder returns the vectors at hand. The picks are compared. Times are processor time (set
    OMP_NUM_THREADS=1), so other work on the machine has little effect.
    """
    draw = np.random.default_rng(0)
    vectors = [draw.normal(size=(candidates, dimension)) for _ in range(pools)]
    scores = [-np.sort(-draw.random(candidates)) for _ in range(pools)]  # falling, which is also the order for ties
    names = [str(prompt) for prompt in range(pools)]
    texts = [[_text(prompt, response) for response in range(candidates)] for prompt in range(pools)]
    groups = Dataset.from_dict({"id": names, "prompt": names, "responses": texts, "scores": scores})
    columns = groups[:]

    def at_hand(some: list[str]) -> np.ndarray:
        return vectors[int(some[0].rsplit(" ", 1)[1])]

    def batched() -> list[list[int]]:
        picks = []
        for first in range(0, pools, 256):
            picks += choose_batch(
                {name: column[first : first + 256] for name, column in columns.items()},
                selector=diverse_best_k,
                options=SelectionOptions(k=k, alpha=0.75, similarity="paper"),
                seed=0,
                embedder=Embedder("at hand", at_hand, forks=True),
            )["picked"]
        return picks

    def selected() -> list[list[int]]:
        return select_indices(groups, "diverse_best_k", k=k, alpha=0.75, similarity="paper", embedder=at_hand)

    few = max(pools // 8, 1)
    times: dict[str, list[float]] = {"definition": [], "batched": [], "select": []}
    for _ in range(rounds):
        began = time.process_time()
        expected = [sorted(definition(*some, k)) for some in zip(vectors[:few], scores[:few], strict=True)]
        times["definition"].append((time.process_time() - began) / few)
        for name, run in (("batched", batched), ("select", selected)):
            began = time.process_time()
            picks = run()
            times[name].append((time.process_time() - began) / pools)
            assert picks[:few] == expected
    median = {name: float(np.median(some)) for name, some in times.items()}
    return {
        "candidates": candidates,
        "dimension": dimension,
        "k": k,
        **{f"{name}, prompts/s": 1 / seconds for name, seconds in median.items()},
        "times as fast": median["definition"] / median["batched"],
        "same picks": few,
    }


def definition(vectors: np.ndarray, scores: np.ndarray, k: int) -> list[int]:
    """Select by the paper's definition: compute F(S with one more) for one prompt and one candidate at a time."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = (np.round(units @ units.T, 6) + 1) / 2
    weights = quality(scores, 0.75)
    terms = np.maximum(weights, FLOOR)[:, None] * weights[None, :] * similarity
    picked: list[int] = []
    for _ in range(k):
        values = [
            -np.inf if candidate in picked else terms[:, [*picked, candidate]].max(axis=1).sum()
            for candidate in range(len(terms))
        ]
        picked.append(int(np.argmax(values)))
    return picked


class CachedVectors:
    """Embedder for generated texts that reads only from the cache."""

    def __init__(self, store: ScoreCache) -> None:
        self.store = store

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Return float32 [n, dim]. A text without a cached vector is an error."""
        keys = [entry_key(b"bench", text.encode()) for text in texts]
        found = self.store.get(keys)
        return np.stack([found[key] for key in keys])


def stream(
    prompts: int, candidates: int, dimension: int, k: int, *, num_proc: int | None, directory: Path | None
) -> dict[str, Any]:
    """Fill a cache with random embeddings, then select with `diverse_best_k` from pools and vectors on disk."""
    place = Path(tempfile.mkdtemp(prefix="mrt-bench-", dir=directory))
    datasets.config.HF_DATASETS_CACHE = place / "datasets"
    try:
        store = ScoreCache(place)
        began = time.perf_counter()
        _fill(store, prompts, candidates, dimension)
        filled = time.perf_counter() - began
        groups = Dataset.from_generator(
            _groups,
            gen_kwargs={"prompts": prompts, "candidates": candidates},
            features=Features(
                {"id": Value("string"), "responses": List(Value("string")), "scores": List(Value("float64"))}
            ),
            cache_dir=str(place / "datasets"),
        )
        assert isinstance(groups, Dataset)
        began, used = time.perf_counter(), _processor_seconds()
        decided = groups.map(
            choose_batch,
            fn_kwargs={
                "selector": diverse_best_k,
                "options": SelectionOptions(k=k, alpha=0.75, similarity="paper"),
                "seed": 0,
                "embedder": Embedder("cached", CachedVectors(store), forks=True),
            },
            batched=True,
            batch_size=256,
            remove_columns=groups.column_names,
            features=DECISION,
            num_proc=num_proc,
            desc="Selecting",
        )
        seconds = time.perf_counter() - began
        used = _processor_seconds() - used
        assert len(decided) == prompts
        return {
            "prompts": prompts,
            "candidates": candidates,
            "dimension": dimension,
            "k": k,
            "processes": num_proc or 1,
            "seconds to fill the cache": filled,
            "cache, GB": store.path.stat().st_size / 1e9,
            "seconds to select": seconds,
            "prompts/s": prompts / seconds,
            "processor seconds, all processes": used,
            "peak memory, MB": _peak_mb(),
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _fill(store: ScoreCache, prompts: int, candidates: int, dimension: int) -> None:
    draw = np.random.default_rng(0)
    for first in range(0, prompts, 512):
        texts = [_text(prompt, j) for prompt in range(first, min(first + 512, prompts)) for j in range(candidates)]
        vectors = draw.standard_normal((len(texts), dimension), dtype=np.float32)
        store.put({entry_key(b"bench", text.encode()): vector for text, vector in zip(texts, vectors, strict=True)})


def _groups(prompts: int, candidates: int) -> Any:
    draw = np.random.default_rng(1)
    for prompt in range(prompts):
        responses = [_text(prompt, j) for j in range(candidates)]
        yield {"id": str(prompt), "responses": responses, "scores": draw.random(candidates).tolist()}


def _text(prompt: int, response: int) -> str:
    return f"response {response} to prompt {prompt}"


def _processor_seconds() -> float:
    """Return the processor seconds of this process and its finished children."""
    usage = [resource.getrusage(user) for user in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def _peak_mb() -> float:
    """Return the peak memory in MB of this process or of its largest child."""
    scale = 1 if sys.platform == "darwin" else 1024
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(user).ru_maxrss for user in users) * scale / 1e6


if __name__ == "__main__":
    main()
