"""Scores of responses from reward models and functions, how well scorers agree, and weights made of scores."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets

from mrt_plugin.engine import check_engine, map_batches
from mrt_plugin.extension import load_function
from mrt_plugin.groups.rows import with_column
from mrt_plugin.options import Engine
from mrt_plugin.scoring.agreement import agreement_line
from mrt_plugin.scoring.cache import ScoreCache, cache_directory
from mrt_plugin.scoring.judge import Judge, is_judge, parse_judge
from mrt_plugin.scoring.judge_run import judge_scores
from mrt_plugin.scoring.training_prompts import trained_on

logger = logging.getLogger(__name__)

ScoreFunction = Callable[[Any, list[Any]], Sequence[float]]
"""Maps a prompt and its N responses, in the dataset's format, to N finite numbers. Higher is better."""

Scorer = str | ScoreFunction | Judge
"""A reward model's name or path, a function's name (`package.module:function`, `file.py:function`), a function, or a
judge (`judge:MODEL@URL`, `judge:FILE.yaml`)."""


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
        scorer: a reward model's name or path, a function, a function's name, or a judge. A function is called once per
            group as `scorer(prompt, responses)`. Several scorers are given as a list, or as a string with commas. Then
            the first gives the scores, and the log reports how well the others agree with it.
        num_proc: number of processes that call a function. A reward model uses all cores in one process.
        score_cache: the directory of the cache of a reward model's scores and of a judge's answers. By default
            $MRT_CACHE or ~/.cache/mrt-plugin.
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
    for line in agreement_lines(groups, columns):
        logger.info(line)
    first = next(iter(columns.values()))
    return with_scores(groups, first)


def score_columns(
    groups: Dataset,
    scorer: Scorer | Sequence[Scorer],
    *,
    num_proc: int | None = None,
    score_cache: str | Path | None = None,
    trust_remote_code: bool = False,
    engine: Engine = "local",
    known_training: bool = False,
) -> dict[str, Dataset]:
    """Return a dataset with the column `scores` for each scorer by name. Takes the arguments of `score_groups`.

    Warns of prompts that a reward model was trained on, unless that is known.
    """
    check_engine(engine)
    columns: dict[str, Dataset] = {}
    groups = groups.select_columns(["id", "prompt", "responses"])
    for one in scorer_list(scorer):
        name = scorer_name(one)
        if name in columns:
            raise ValueError(f"The scorer {name} is named twice.")
        shown: dict[str, Any] = {"description": f"Scoring ({name})", "engine": engine}
        if isinstance(one, Judge) or is_judge(one):
            columns[name] = judge_scores(one if isinstance(one, Judge) else parse_judge(str(one)), groups, score_cache)
        elif isinstance(one, str) and ":" not in one:
            import torch

            seen = 0 if known_training else trained_on(one, groups["prompt"])
            if seen:
                what = "%s was trained on %d of these %d prompts: its scores of them are too good. Score others."
                logger.warning(what, name, seen, len(groups))
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


def agreement_lines(groups: Dataset, columns: dict[str, Dataset]) -> Iterator[str]:
    """Yield a line for each pair to compare: the column `scores`, if there is one, and each scorer with the first."""
    (name, first), *others = columns.items()
    if "scores" in groups.column_names:
        yield agreement_line("the column `scores`", groups["scores"], name, first["scores"])
    for other, column in others:
        yield agreement_line(name, first["scores"], other, column["scores"])


def with_scores(groups: Dataset, scores: Dataset) -> Dataset:
    """Return the groups with the column of `scores`, which replaces an existing one."""
    others = [name for name in groups.column_names if name != "scores"]
    return concatenate_datasets([groups.select_columns(others), scores], axis=1)


def scorer_list(scorer: Scorer | Sequence[Scorer]) -> list[Scorer]:
    """Return the scorers that an option names, several with commas."""
    if isinstance(scorer, str):
        return [part.strip() for part in scorer.split(",") if part.strip()]
    return [scorer] if callable(scorer) or isinstance(scorer, Judge) else list(scorer)


def scorer_name(scorer: Scorer) -> str:
    if isinstance(scorer, Judge) or is_judge(scorer):
        return (scorer if isinstance(scorer, Judge) else parse_judge(str(scorer))).name
    return scorer if isinstance(scorer, str) else getattr(scorer, "__qualname__", type(scorer).__name__)


def judges_of(scorer: Scorer | Sequence[Scorer] | None, **changes: Any) -> list[Scorer]:
    """Return the scorers, with judges in place of their names. `changes` are those of `parse_judge`."""
    named = [] if scorer is None else scorer_list(scorer)
    return [parse_judge(one, **changes) if isinstance(one, str) and is_judge(one) else one for one in named]


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


def ask_batch(batch: dict[str, list[Any]], *, scorer: str | ScoreFunction) -> dict[str, list[Any]]:
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
