"""Scores of responses: from a reward model, or from a function of the user's own."""

import logging
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets

from mrt_plugin.scoring.agreement import rank_agreement
from mrt_plugin.scoring.cache import ScoreCache
from mrt_plugin.scoring.function import load_function

logger = logging.getLogger(__name__)

ScoreFunction = Callable[[Any, list[Any]], Sequence[float]]
"""From a prompt and its N responses (as the dataset has them) to N finite numbers, higher is better."""

Scorer = str | ScoreFunction
"""A reward model by name or path, a function by `package.module:function` or `file.py:function`, or a function."""


def score_groups(
    groups: Dataset,
    scorer: Scorer | Sequence[Scorer],
    *,
    num_proc: int | None = None,
    score_cache: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Dataset:
    """The groups with a `scores` column from `scorer`, in place of any they had.

    Args:
        groups: as `load_groups` gives them.
        scorer: a reward model's name or path; or a function, called once per group as `scorer(prompt, responses)`,
            itself or by name. Of several (a list, or a string with commas) the first gives the scores, and how well
            the others agree with it is logged.
        num_proc: processes to call a function in; a reward model uses all cores in one.
        score_cache: the directory in which a reward model's scores are kept; by default $MRT_CACHE or
            ~/.cache/mrt-plugin.
        trust_remote_code: run code that comes with a reward model.

    Raises:
        CacheError: if the cache cannot be used.
        ValueError: naming the group, if the scorer does not give one finite number per response; if there is no such
            model, or it has several labels.

    Example:

    ```python
    shortest_first = score_groups(groups, lambda prompt, responses: [-len(response) for response in responses])
    judged = score_groups(groups, "path/to/reward-model")
    ```
    """
    columns = score_columns(
        groups, scorer, num_proc=num_proc, score_cache=score_cache, trust_remote_code=trust_remote_code
    )
    (name, first), *others = columns.items()
    for other, column in others:
        logger.info(rank_agreement(first["scores"], column["scores"]).summary(name, other))
    return with_scores(groups, first)


def score_columns(
    groups: Dataset,
    scorer: Scorer | Sequence[Scorer],
    *,
    num_proc: int | None = None,
    score_cache: str | Path | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Dataset]:
    """One dataset with the column `scores` for each scorer, by the scorer's name. As `score_groups` otherwise."""
    columns: dict[str, Dataset] = {}
    for one in scorer_list(scorer):
        name = scorer_name(one)
        if name in columns:
            raise ValueError(f"The scorer {name} is named twice.")
        if isinstance(one, str) and ":" not in one:
            columns[name] = _by_model(groups, one, score_cache, trust_remote_code)
        else:
            columns[name] = _by_function(groups, load_function(one) if isinstance(one, str) else one, num_proc)
    if not columns:
        raise ValueError("scorer is empty: name a reward model, or a function.")
    return columns


def with_scores(groups: Dataset, scores: Dataset) -> Dataset:
    """The groups with the one column of `scores` in place of any they had."""
    others = [name for name in groups.column_names if name != "scores"]
    return concatenate_datasets([groups.select_columns(others), scores], axis=1)


def scorer_list(scorer: Scorer | Sequence[Scorer]) -> list[Scorer]:
    """The scorers that an option names.

    Example:

    >>> scorer_list("path/to/model, my_module:score")
    ['path/to/model', 'my_module:score']
    """
    if isinstance(scorer, str):
        return [part.strip() for part in scorer.split(",") if part.strip()]
    return [scorer] if callable(scorer) else list(scorer)


def scorer_name(scorer: Scorer) -> str:
    """What a scorer is called in messages and manifests."""
    return scorer if isinstance(scorer, str) else getattr(scorer, "__qualname__", type(scorer).__name__)


_SCORES = Features({"scores": List(Value("float64"))})


def _by_model(groups: Dataset, name: str, score_cache: str | Path | None, trust_remote_code: bool) -> Dataset:
    from mrt_plugin.scoring.reward_model import RewardModel

    model = RewardModel(name, ScoreCache(score_cache), trust_remote_code=trust_remote_code)
    wanted = groups.select_columns(["prompt", "responses"])
    ids = groups["id"]
    scores = []
    for place, given in enumerate(model.score_groups(iter(wanted), total=len(groups))):
        _check(given, len(given), name, ids[place])
        scores.append(given)
    return Dataset.from_dict({"scores": scores}, features=_SCORES)


def _by_function(groups: Dataset, function: ScoreFunction, num_proc: int | None) -> Dataset:
    return groups.map(
        _score,
        fn_kwargs={"scorer": function},
        remove_columns=groups.column_names,
        features=_SCORES,
        num_proc=num_proc,
        keep_in_memory=True,
        new_fingerprint=uuid.uuid4().hex,  # nothing here may be cached: the cache cannot see into a user's function
        desc="Scoring",
    )


def _score(group: dict[str, Any], scorer: ScoreFunction) -> dict[str, Any]:
    scores = np.asarray(scorer(group["prompt"], group["responses"]), dtype=np.float64)
    _check(scores, len(group["responses"]), "The scorer", group["id"])
    return {"scores": scores.tolist()}


def _check(scores: Any, count: int, name: str, group: str) -> None:
    scores = np.asarray(scores)
    if scores.shape != (count,) or not np.isfinite(scores).all():
        raise ValueError(
            f"{name} gave {scores.tolist()} for the {count} responses of group {group}: "
            "it must give one finite number for each."
        )
