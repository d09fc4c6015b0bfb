"""Scores of responses from reward models and functions, how well scorers agree, and weights made of scores."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from scipy.stats import rankdata

from mrt_plugin.engine import check_engine, map_batches
from mrt_plugin.extension import load_function
from mrt_plugin.groups.rows import with_column
from mrt_plugin.options import Engine
from mrt_plugin.scoring.cache import ScoreCache, cache_directory

logger = logging.getLogger(__name__)

ScoreFunction = Callable[[Any, list[Any]], Sequence[float]]
"""Maps a prompt and its N responses, in the dataset's format, to N finite numbers. Higher is better."""

Scorer = str | ScoreFunction
"""A reward model's name or path, a function's name (`package.module:function`, `file.py:function`), or a function."""


def score_groups(
    groups: Dataset,
    scorer: Scorer | Sequence[Scorer],
    *,
    num_proc: int | None = None,
    score_cache: str | Path | None = None,
    trust_remote_code: bool = False,
    engine: Engine = "local",
) -> Dataset:
    """Return the groups with a `scores` column from `scorer`, which replaces an existing one.

    Args:
        groups: groups as `load_groups` returns them.
        scorer: a reward model's name or path, a function, or a function's name. A function is called once per group
            as `scorer(prompt, responses)`. Several scorers are given as a list, or as a string with commas. Then the
            first gives the scores, and the log reports how well the others agree with it.
        num_proc: number of processes that call a function. A reward model uses all cores in one process.
        score_cache: the directory of the cache of a reward model's scores. By default $MRT_CACHE or
            ~/.cache/mrt-plugin.
        trust_remote_code: run code that comes with a reward model.
        engine: `local`, or `ray` to run functions and reward models on its workers, with the same scores.

    Raises:
        CacheError: if the cache cannot be used.
        ValueError: if there is no such model, it has several labels, or a group gets no finite score per response.
    """
    columns = score_columns(
        groups,
        scorer,
        num_proc=num_proc,
        score_cache=score_cache,
        trust_remote_code=trust_remote_code,
        engine=engine,
    )
    (name, first), *others = columns.items()
    for other, column in others:
        logger.info(rank_agreement(name, first["scores"], other, column["scores"]))
    return with_scores(groups, first)


def score_columns(
    groups: Dataset,
    scorer: Scorer | Sequence[Scorer],
    *,
    num_proc: int | None = None,
    score_cache: str | Path | None = None,
    trust_remote_code: bool = False,
    engine: Engine = "local",
) -> dict[str, Dataset]:
    """Return a dataset with the column `scores` for each scorer by name. Takes the arguments of `score_groups`."""
    check_engine(engine)
    columns: dict[str, Dataset] = {}
    groups = groups.select_columns(["id", "prompt", "responses"])
    for one in scorer_list(scorer):
        name = scorer_name(one)
        if name in columns:
            raise ValueError(f"The scorer {name} is named twice.")
        shown: dict[str, Any] = {"description": f"Scoring ({name})", "engine": engine}
        if isinstance(one, str) and ":" not in one:
            import torch

            shown |= {"batch_size": MODEL_BATCH, "threads": torch.get_num_threads()}
            directory = str(cache_directory(score_cache).absolute())
            model = {"name": one, "directory": directory, "trust": trust_remote_code}
            answered = map_batches(groups, score_batch, model, _MODEL_SCORES, **shown)
            _reward_model.cache_clear()  # later steps need its memory
            if any(answered["cut"]):
                what = "%s: %d conversations are longer than the %d tokens that it takes, and lost their beginning."
                logger.warning(what, name, sum(answered["cut"]), answered["limit"][0])
            columns[name] = answered.select_columns(["scores"])
        else:
            if isinstance(one, str):
                load_function(one)  # a wrong name raises here, not in a worker
            shown |= {"batch_size": BATCH, "num_proc": num_proc}
            columns[name] = map_batches(groups, ask_batch, {"scorer": one}, _SCORES, **shown)
    if not columns:
        raise ValueError("scorer is empty: name a reward model, or a function.")
    return columns


def with_scores(groups: Dataset, scores: Dataset) -> Dataset:
    """Return the groups with the column of `scores`, which replaces an existing one."""
    others = [name for name in groups.column_names if name != "scores"]
    return concatenate_datasets([groups.select_columns(others), scores], axis=1)


def scorer_list(scorer: Scorer | Sequence[Scorer]) -> list[Scorer]:
    """Return the scorers that an option names, several with commas."""
    if isinstance(scorer, str):
        return [part.strip() for part in scorer.split(",") if part.strip()]
    return [scorer] if callable(scorer) else list(scorer)


def scorer_name(scorer: Scorer) -> str:
    return scorer if isinstance(scorer, str) else getattr(scorer, "__qualname__", type(scorer).__name__)


_SCORES = Features({"scores": List(Value("float64"))})
_MODEL_SCORES = Features({**_SCORES, "cut": Value("int64"), "limit": Value("int64")})

BATCH = 32
"""Groups per batch of a function: between two steps of the progress bar, and per message to a worker."""
MODEL_BATCH = 256
"""Groups per batch of a model: enough texts of similar length to fill the model's batches."""


def score_batch(batch: dict[str, list[Any]], *, name: str, directory: str, trust: bool) -> dict[str, list[Any]]:
    """Score the columns `id`, `prompt` and `responses` with a reward model. Stateless except for its cache.

    Returns the columns `scores`, `cut` (in the first row the conversations of the batch that lost their beginning)
    and `limit` (the tokens that the model takes).
    """
    model = _reward_model(name, directory, trust)
    before = model.cut
    groups = zip(batch["prompt"], batch["responses"], strict=True)
    given = model.score([(prompt, response) for prompt, responses in groups for response in responses])
    scores = np.split(given, np.cumsum([len(responses) for responses in batch["responses"]])[:-1])
    cut = [model.cut - before] + [0] * (len(scores) - 1)
    return {"scores": _checked(scores, batch, name), "cut": cut, "limit": [model.longest] * len(scores)}


@cache  # a process loads its model once
def _reward_model(name: str, directory: str, trust: bool) -> Any:
    from mrt_plugin.scoring.reward_model import RewardModel

    return RewardModel(name, ScoreCache(directory), trust_remote_code=trust)


def ask_batch(batch: dict[str, list[Any]], *, scorer: Scorer) -> dict[str, list[Any]]:
    """Score the columns `id`, `prompt` and `responses` with a user's function, given by name or itself.

    Returns the column `scores`. A function that is loaded by name does not have to be pickled for a worker.
    """
    function = load_function(scorer) if isinstance(scorer, str) else scorer
    groups = zip(batch["prompt"], batch["responses"], strict=True)
    return {
        "scores": _checked((np.asarray(function(*group), dtype=np.float64) for group in groups), batch, "The scorer")
    }


def _checked(scores: Iterable[np.ndarray], batch: dict[str, list[Any]], scorer: str) -> list[list[float]]:
    found = []
    for given, responses, group in zip(scores, batch["responses"], batch["id"], strict=True):
        if given.shape != (len(responses),) or not np.isfinite(given).all():
            raise ValueError(
                f"{scorer} gave {given.tolist()} for the {len(responses)} responses of group {group}: "
                "it must give one finite number for each."
            )
        found.append(given.tolist())
    return found


def rank_agreement(
    first: str, scores: Iterable[Sequence[float]], other: str, others: Iterable[Sequence[float]]
) -> str:
    """Return one line: the mean of Spearman's rank correlation in each group, and how often the best is the same."""
    correlations: list[float] = []
    same = 0
    for a, b in zip(scores, others, strict=True):
        x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            continue
        correlations.append(float(np.corrcoef(rankdata(x), rankdata(y))[0, 1]))
        same += bool(((x == x.max()) & (y == y.max())).any())
    count = len(correlations)
    if not count:
        return f"{other} and {first}: no group has responses that both score apart."
    mean = round(math.fsum(correlations) / count, 12) + 0.0
    return (
        f"{other} agrees with {first}: rank correlation {mean:.2f} inside a group (mean of {count:,}), the same best "
        f"response in {same / count:.0%}."
    )


def softmax_weights(scores: Sequence[float], temperature: float) -> list[float]:
    """Return K weights with mean 1: w_j = K · exp(score_j / T) / sum_i exp(score_i / T), for a temperature T > 0."""
    if not temperature > 0:
        raise ValueError(f"weight_temperature={temperature!r} must be above 0.")
    if not len(scores):
        return []
    given = np.asarray(scores, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):
        powers = np.exp((given - given.max()) / temperature)
    return list((powers * (len(given) / powers.sum())).tolist())


def weigh_groups(groups: Dataset, temperature: float) -> Dataset:
    """Return the groups with a column `weights` computed from their scores, which replaces an existing one."""
    if "scores" not in groups.column_names:
        raise ValueError("weights='softmax' needs scores: give a column `scores`, or a `scorer`.")
    weights = [softmax_weights(scores, temperature) for scores in groups["scores"]]
    return with_column(groups, "weights", weights, List(Value("float64")))
