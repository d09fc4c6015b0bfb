"""Scores of responses, from a reward model or from a user's function."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from tqdm.auto import tqdm

from mrt_plugin.engine import check_engine, map_batches
from mrt_plugin.extension import load_function
from mrt_plugin.groups.batches import batch_size
from mrt_plugin.options import Engine
from mrt_plugin.scoring.agreement import rank_agreement
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
        engine: `local`, or `ray` to run functions and reward models on its workers, with the same scores.
        score_cache: the directory of the cache of a reward model's scores; by default $MRT_CACHE or
            ~/.cache/mrt-plugin.
        trust_remote_code: run code that comes with a reward model.

    Raises:
        CacheError: if the cache cannot be used.
        ValueError: if the scorer does not give one finite number per response; the message names the group. Also if
            there is no such model, or it has several labels.

    Example:

    ```python
    shortest_first = score_groups(groups, lambda prompt, responses: [-len(response) for response in responses])
    judged = score_groups(groups, "path/to/reward-model")
    ```
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
        logger.info(rank_agreement(first["scores"], column["scores"]).summary(name, other))
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
    for one in scorer_list(scorer):
        name = scorer_name(one)
        if name in columns:
            raise ValueError(f"The scorer {name} is named twice.")
        if isinstance(one, str) and ":" not in one:
            columns[name] = _by_model(groups, one, score_cache, trust_remote_code, engine)
        else:
            columns[name] = _by_function(groups, one, num_proc, engine)
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
_MODEL_SCORES = Features({**_SCORES, "cut": Value("int64")})

BATCH = 32
"""Groups per batch of a function: between two steps of the progress bar, and per message to a worker."""
MODEL_BATCH = 256
"""Groups per batch of a model: enough texts of similar length to fill the model's batches."""


def _by_model(
    groups: Dataset, name: str, score_cache: str | Path | None, trust_remote_code: bool, engine: Engine
) -> Dataset:
    wanted = groups.select_columns(["id", "prompt", "responses"])
    cut_message = "%s: %d conversations are longer than%s it takes, and lost their beginning."
    if engine == "ray":
        import torch

        answered = map_batches(
            wanted,
            score_batch,
            {"name": name, "directory": str(cache_directory(score_cache).absolute()), "trust": trust_remote_code},
            _MODEL_SCORES,
            batch_size=MODEL_BATCH,
            description=f"Scoring ({name})",
            engine=engine,
            threads=torch.get_num_threads(),
        )
        if any(answered["cut"]):
            logger.warning(cut_message, name, sum(answered["cut"]), "")
        return answered.select_columns(["scores"])
    from mrt_plugin.scoring.reward_model import RewardModel

    model = RewardModel(name, ScoreCache(score_cache), trust_remote_code=trust_remote_code)
    scores: list[list[float]] = []
    with tqdm(desc=f"Scoring ({name})", unit=" groups", total=len(groups), delay=2) as bar:
        for batch in wanted.iter(batch_size(wanted, MODEL_BATCH)):
            scores += _score_with(model, batch, name)
            bar.update(len(scores) - bar.n)
    if model.cut:
        logger.warning(cut_message, name, model.cut, f" the {model.longest} tokens that")
    return Dataset.from_dict({"scores": scores}, features=_SCORES)


def score_batch(batch: dict[str, list[Any]], *, name: str, directory: str, trust: bool) -> dict[str, list[Any]]:
    """Score the columns `id`, `prompt` and `responses` with a reward model. Stateless except for its cache.

    Returns the columns `scores` and `cut`: in the first row the conversations of the batch that lost their beginning.
    """
    model = _reward_model(name, directory, trust)
    before = model.cut
    scores = _score_with(model, batch, name)
    return {"scores": scores, "cut": [model.cut - before] + [0] * (len(scores) - 1)}


@cache  # a worker loads its model once
def _reward_model(name: str, directory: str, trust: bool) -> Any:
    from mrt_plugin.scoring.reward_model import RewardModel

    return RewardModel(name, ScoreCache(directory), trust_remote_code=trust)


def _score_with(model: Any, batch: Any, name: str) -> list[list[float]]:
    groups = list(zip(batch["prompt"], batch["responses"], strict=True))
    given = model.score([(prompt, response) for prompt, responses in groups for response in responses])
    scores = np.split(given, np.cumsum([len(responses) for _, responses in groups])[:-1])
    for group, (_, responses), some in zip(batch["id"], groups, scores, strict=True):
        _check(some, len(responses), name, group)
    return [some.tolist() for some in scores]


def _by_function(groups: Dataset, scorer: Scorer, num_proc: int | None, engine: Engine) -> Dataset:
    if isinstance(scorer, str):
        load_function(scorer)  # a wrong name raises here, not in a worker
    return map_batches(
        groups.select_columns(["id", "prompt", "responses"]),
        ask_batch,
        {"scorer": scorer},
        _SCORES,
        batch_size=BATCH,
        description="Scoring",
        num_proc=num_proc,
        engine=engine,
    )


def ask_batch(batch: dict[str, list[Any]], *, scorer: Scorer) -> dict[str, list[Any]]:
    """Score the columns `id`, `prompt` and `responses` with a user's function, given by name or itself.

    Returns the column `scores`. A function that is loaded by name does not have to be pickled for a worker.
    """
    function = load_function(scorer) if isinstance(scorer, str) else scorer
    answer = []
    for name, prompt, responses in zip(batch["id"], batch["prompt"], batch["responses"], strict=True):
        scores = np.asarray(function(prompt, responses), dtype=np.float64)
        _check(scores, len(responses), "The scorer", name)
        answer.append(scores.tolist())
    return {"scores": answer}


def _check(scores: np.ndarray, count: int, name: str, group: str) -> None:
    if scores.shape != (count,) or not np.isfinite(scores).all():
        raise ValueError(
            f"{name} gave {scores.tolist()} for the {count} responses of group {group}: "
            "it must give one finite number for each."
        )
