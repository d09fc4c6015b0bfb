"""Run a stateless batch function in processes of this machine or on Ray. The result is the same."""

import uuid
from typing import Any, get_args

from datasets import Dataset, Features

from mrt_plugin.groups.batches import batch_size as bounded_size
from mrt_plugin.options import Engine
from mrt_plugin.ray_engine import BatchFunction, map_on_ray


def check_engine(engine: str) -> None:
    """Raise ValueError if there is no such engine."""
    if engine not in get_args(Engine):
        raise ValueError(f"engine={engine!r} is unknown: choose one of {', '.join(get_args(Engine))}.")


def map_batches(
    groups: Dataset,
    function: BatchFunction,
    kwargs: dict[str, Any],
    features: Features,
    *,
    batch_size: int,
    description: str,
    num_proc: int | None = None,
    engine: Engine = "local",
    threads: int | None = None,
) -> Dataset:
    """Apply a function to all groups, and return its results in the groups' order.

    The cache of `datasets` is not used, because it cannot detect changes in a user's function or in a model's file.

    Args:
        groups: n rows. The function gets every column.
        function: a stateless function. It handles each group separately, so the result does not depend on batches
            or workers.
        kwargs: its other arguments; on Ray they are pickled.
        features: the features of the result.
        batch_size: maximum groups per call; large groups come in smaller batches.
        description: the text of the progress bar.
        num_proc: number of processes of the local engine.
        engine: `local` or `ray`.
        threads: on Ray, for a function that runs a model: the cores of a worker and the threads of its model
            (see `mrt_plugin.ray_engine`).

    Returns:
        n rows.
    """
    batch_size = bounded_size(groups, batch_size)
    if engine == "ray":
        return map_on_ray(
            groups, function, kwargs, features, batch_size=batch_size, description=description, threads=threads
        )
    return groups.map(
        function,
        fn_kwargs=kwargs,
        batched=True,
        batch_size=batch_size,
        remove_columns=groups.column_names,
        features=features,
        num_proc=num_proc,
        keep_in_memory=True,
        new_fingerprint=uuid.uuid4().hex,
        desc=description,
    )
