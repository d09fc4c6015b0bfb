"""Run a stateless batch function in processes of this machine or on Ray. The result is the same."""

import importlib.util
import io
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import pyarrow
from datasets import Dataset, Features
from tqdm.auto import tqdm

from mrt_plugin.groups.batches import batch_size as bounded_size
from mrt_plugin.options import Engine

BatchFunction = Callable[..., dict[str, list[Any]]]
"""Maps the columns of a batch to the columns of the result. One row per group, each computed separately."""


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
    """Apply a function to batches of all groups, at most `batch_size` each. Return its results in the groups' order.

    The cache of `datasets` is not used, because it cannot detect changes in a user's function or in a model's file.
    On Ray, a function that runs a model gets workers with that many `threads` and cores, or the cores of the smallest
    machine. The last digits of the results depend on this number.
    """
    batch_size = bounded_size(groups, batch_size)
    if engine == "ray":
        call = partial(function, **kwargs)
        return _map_on_ray(_Task(groups, call, features, batch_size, threads, os.getcwd()), description)
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


@dataclass(frozen=True)
class _Task:
    groups: Dataset
    function: BatchFunction
    features: Features
    batch_size: int
    threads: int | None
    directory: str


def _map_on_ray(task: _Task, description: str) -> Dataset:
    """Run a task with Ray Data, on an existing connection (`RAY_ADDRESS`) or on this machine.

    The driver sends only row numbers. Workers read the rows from the datasets cache, on a disk that all can read.
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError("engine='ray' needs Ray: pip install 'mrt-plugin[ray]'.")
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    found = ray.cluster_resources()
    workers = int(found.get("CPU", 1))
    needs: dict[str, Any] = {"num_cpus": 1}
    if task.threads is not None:
        cores = max(1, min(task.threads, *(int(node["Resources"].get("CPU", 1)) for node in ray.nodes())))
        task, workers, needs = replace(task, threads=cores), workers // cores, {"num_cpus": cores}
        if found.get("GPU"):
            needs["num_gpus"], workers = 1, min(workers, int(found["GPU"]))
    total = len(task.groups)
    batches = [{"start": start} for start in range(0, total, task.batch_size)]
    answered = ray.data.from_items(batches).map_batches(
        _Worker,
        fn_constructor_args=(task,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(workers, len(batches)))),
        **needs,
    )
    answers: dict[int, bytes] = {}
    with tqdm(desc=description, total=total, unit=" groups", delay=2) as bar:
        for row in answered.iter_rows():
            answers[row["start"]] = row["answer"]
            bar.update(min(task.batch_size, total - row["start"]))
    tables = [pyarrow.ipc.open_stream(answers[start]).read_all() for start in sorted(answers)]
    return Dataset(pyarrow.concat_tables(tables) if tables else task.features.arrow_schema.empty_table())


class _Worker:
    """Applies the function to batches of the groups, given by the number of their first row."""

    def __init__(self, task: _Task) -> None:
        self.task = task
        if os.path.isdir(task.directory):  # so that relative paths of models and caches are valid on the worker
            os.chdir(task.directory)
        if task.threads is not None:
            import torch

            torch.set_num_threads(task.threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return an Arrow stream, which keeps nested lists and strings unchanged."""
        task, start = self.task, int(batch["start"][0])
        rows = task.groups[start : start + task.batch_size]
        table = Dataset.from_dict(task.function(rows), features=task.features).data.table
        sink = io.BytesIO()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return {"start": [start], "answer": [sink.getvalue()]}
