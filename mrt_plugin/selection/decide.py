"""The decisions for a batch of groups: a stateless function that runs in any process or on any machine."""

from dataclasses import replace
from typing import Any

from datasets import Features, List, Value

from mrt_plugin.options import SelectionOptions
from mrt_plugin.scoring.cosine import cosine_matrices
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.selection.pool import Columns, Pool, Selector, candidate_texts, candidates_of, make_pool

CELLS = 2**17
"""Number of cosines held at a time: 1 MiB of float64, which stay in the processor's cache until they are used."""

COUNTS = ("candidates", "weightless", "left_out", "later_picks", "zero_gain")
DECISION = Features({"picked": List(Value("int64")), **{name: Value("int64") for name in COUNTS}})


def embed_first(batch: dict[str, list[Any]], *, function: Any, least: int, **kwargs: Any) -> dict[str, list[Any]]:
    """Compute all vectors of a batch at once, which is fastest, then run `function`, which finds them cached."""
    least = min(batch["k"]) if "k" in batch else least
    texts = candidate_texts(batch, n=kwargs["options"].n, seed=kwargs["seed"], at_least=least + 1)
    kwargs["embedder"].prepare([texts])
    found: dict[str, list[Any]] = function(batch, **kwargs)
    return found


def choose_batch(
    batch: dict[str, list[Any]], *, selector: Selector, options: SelectionOptions, seed: int, embedder: Embedder | None
) -> dict[str, list[Any]]:
    """Choose responses for a batch of groups, each separately, and return the columns of `DECISION`.

    The columns of the batch are `id`, `responses`, and optionally `scores`, `weights` and `k` (one K per group).
    """
    decisions: dict[str, list[Any]] = {name: [0] * len(batch["id"]) for name in DECISION}
    waiting: dict[int, list[tuple[int, Pool]]] = {}

    def flush() -> None:
        if embedder is not None and selector.needs_embeddings:
            pools = [pool for some in waiting.values() for _, pool in some]
            for pool, cosines in zip(pools, cosine_matrices([pool.texts for pool in pools], embedder), strict=True):
                pool.cosines = cosines
        for k, some in waiting.items():
            chosen = selector.choose([pool for _, pool in some], replace(options, k=k))
            for (row, pool), picks in zip(some, chosen, strict=True):
                decisions["picked"][row] = sorted([pool.order[place] for place in picks.positions])
                if picks.gains:
                    decisions["later_picks"][row] = len(picks.gains) - 1
                    decisions["zero_gain"][row] = picks.gains[1:].count(0)
        waiting.clear()

    cells = 0
    # A batch of `datasets` is slow to access, and it reads other columns only when they are used.
    names = ("id", "responses", "scores", "weights", "k")
    columns: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    for row, responses in enumerate(columns["responses"]):
        candidates = candidates_of(columns, row, n=options.n, seed=seed)
        weightless = sum(weight <= 0 for weight in columns["weights"][row]) if "weights" in columns else 0
        k = columns["k"][row] if "k" in columns else options.k
        decisions["candidates"][row] = len(candidates)
        decisions["weightless"][row] = weightless
        decisions["left_out"][row] = len(responses) - weightless - len(candidates)
        if selector.keeps_all or len(candidates) <= k:
            decisions["picked"][row] = candidates
            continue
        scores = columns["scores"][row] if "scores" in columns else None
        waiting.setdefault(k, []).append((row, make_pool(Columns(batch, row), scores, candidates, seed, embedder)))
        cells += len(candidates) ** 2
        if cells >= CELLS:
            flush()
            cells = 0
    flush()
    return decisions
