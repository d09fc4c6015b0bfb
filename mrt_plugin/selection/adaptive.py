"""Adaptive K: keep more responses for prompts whose responses differ more."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from mrt_plugin.engine import map_batches
from mrt_plugin.groups.messages import response_text
from mrt_plugin.options import Engine
from mrt_plugin.scoring.cosine import cosine_matrix
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.selection.allocation import Allocation, allocate
from mrt_plugin.selection.pool import candidate_texts, candidates_of

SPREAD = Features({"spread": Value("float64"), "size": Value("int64")})


@dataclass(frozen=True)
class AdaptiveK:
    """The options of adaptive allocation; see `mrt_plugin.selection.allocation.allocate`."""

    score: str = "diversity"
    """The measure of how much a prompt's responses vary.

    - `diversity`: 1 minus the mean cosine over all pairs of responses.
    - `length`: the variance of the responses' lengths in characters.
    - A column's name: the column holds one number per prompt, or one number per response, whose variance is used.

    The best estimate of the loss results from the variance of the model's loss."""
    mean_k: float | None = None
    target_total: int | None = None
    min_k: int = 1
    max_k: int | None = None

    @property
    def needs_embeddings(self) -> bool:
        """Whether the score is computed from embeddings."""
        return self.score == "diversity"

    def columns(self) -> list[str]:
        """Return the columns that the score is read from, in addition to those that every selection reads."""
        return [] if self.score in ("diversity", "length") else [self.score]


def adaptive_k(
    groups: Dataset,
    plan: AdaptiveK,
    *,
    n: int | None,
    seed: int,
    embedder: Embedder | None,
    num_proc: int | None,
    engine: Engine = "local",
) -> Allocation:
    """Compute a score for every prompt, then the allocation. The result does not depend on the row order.

    Raises:
        ValueError: if the column is missing or has other contents, or if the limits contradict each other.
    """
    for name in plan.columns():
        if name not in groups.column_names:
            raise ValueError(
                f"allocation_score={name!r} is neither `diversity` nor `length`, nor a column of the groups "
                f"({', '.join(groups.column_names)})."
            )
    names = ["id", "responses", "scores", "weights", *plan.columns()]
    wanted = groups.select_columns([name for name in dict.fromkeys(names) if name in groups.column_names])
    embeds = engine == "ray" and embedder is not None and embedder.prepare is not None and plan.needs_embeddings
    measured = map_batches(
        wanted,
        embed_and_spread if embeds else spread_batch,
        {"plan": plan, "n": n, "seed": seed, "embedder": embedder},
        SPREAD,
        batch_size=256,
        description="Measuring how responses differ",
        num_proc=num_proc,
        engine=engine,
        threads=None if embedder is None else embedder.threads(),
    )
    return allocate(
        measured["spread"][:],
        measured["size"][:],
        groups["id"][:],
        target_total=plan.target_total,
        mean_k=plan.mean_k,
        min_k=plan.min_k,
        max_k=plan.max_k,
    )


def embed_and_spread(batch: dict[str, list[Any]], **told: Any) -> dict[str, list[Any]]:
    """Compute the vectors of a batch, then run `spread_batch`; see `mrt_plugin.selection.decide.embed_and_choose`."""
    told["embedder"].prepare([candidate_texts(batch, n=told["n"], seed=told["seed"], at_least=1)])
    return spread_batch(batch, **told)


def spread_batch(
    batch: dict[str, list[Any]], *, plan: AdaptiveK, n: int | None, seed: int, embedder: Embedder | None
) -> dict[str, list[Any]]:
    """Return the columns of `SPREAD`: how much each group's candidates differ, and their number."""
    spreads, sizes = [], []
    for place, name in enumerate(batch["id"]):
        candidates = candidates_of(batch, place, n=n, seed=seed)
        sizes.append(len(candidates))
        texts = [response_text(batch["responses"][place][index]) for index in candidates]
        if plan.score == "diversity":
            assert embedder is not None
            spreads.append(diversity(cosine_matrix(texts, embedder)))
        elif plan.score == "length":
            spreads.append(_variance([float(len(text)) for text in texts]))
        else:
            spreads.append(_given(batch[plan.score][place], candidates, len(batch["responses"][place]), plan, name))
    return {"spread": spreads, "size": sizes}


def diversity(cosines: np.ndarray) -> float:
    """Return 1 minus the mean cosine over all pairs of responses; 0 for a single response.

    Args:
        cosines: [N, N] with 1 on the diagonal.
    """
    count = len(cosines)
    if count < 2:
        return 0.0
    # Rounding can raise the mean cosine of equal responses above 1.
    return max(0.0, float(1 - (cosines.sum() - count) / (count * (count - 1))))


def _given(value: Any, candidates: np.ndarray, count: int, plan: AdaptiveK, name: str) -> float:
    numbers = np.asarray(value, dtype=np.float64) if value is not None else np.array(np.nan)
    if numbers.shape not in ((), (count,)) or not np.isfinite(numbers).all():
        raise ValueError(
            f"allocation_score={plan.score!r}: group {name} has {value!r} there, which is neither a finite number nor "
            f"{count} of them, one per response."
        )
    return float(numbers) if numbers.shape == () else _variance(numbers[candidates].tolist())


def _variance(values: list[float]) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
