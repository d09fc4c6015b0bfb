"""Run a stateless batch function in processes of this machine or on Ray. The result is the same."""

import importlib.util
import io
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
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
        threads: on Ray, for a function that runs a model: the cores of a worker and the threads of its model.

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


def map_on_ray(
    groups: Dataset,
    function: BatchFunction,
    kwargs: dict[str, Any],
    features: Features,
    *,
    batch_size: int,
    description: str = "On Ray",
    threads: int | None = None,
) -> Dataset:
    """Apply a function to all groups with Ray Data, on one or more machines. Arguments are those of `map_batches`.

    The driver sends only row numbers. Each worker reads its rows from the datasets cache, which must be on a disk
    that all machines can read (`HF_DATASETS_CACHE`). Workers are actors that receive `kwargs` once, so a model is
    loaded once per worker. Results arrive in any order and are sorted by row, so they do not depend on the number of
    workers. An existing connection to Ray (`RAY_ADDRESS`) is used; otherwise Ray is started on this machine.

    At most `threads` cores of the smallest machine are used for a worker. Its model runs with the same number of
    threads, because the last digits of its results depend on that number. On machines with GPUs, a worker gets one.

    Raises:
        ImportError: if Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError("engine='ray' needs Ray: pip install 'mrt-plugin[ray]'.")
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    needs: dict[str, Any] = {"num_cpus": 1}
    found = ray.cluster_resources()
    workers = int(found.get("CPU", 1))
    if threads is not None:
        threads = max(1, min(threads, *(int(node["Resources"].get("CPU", 1)) for node in ray.nodes())))
        needs, workers = {"num_cpus": threads}, workers // threads
        if found.get("GPU"):
            needs["num_gpus"], workers = 1, min(workers, int(found["GPU"]))
    batches = [{"start": start} for start in range(0, len(groups), batch_size)]
    answered = ray.data.from_items(batches).map_batches(
        _Worker,
        fn_constructor_args=(groups, function, kwargs, features, batch_size, threads, os.getcwd()),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(workers, len(batches)))),
        **needs,
    )
    answers: dict[int, bytes] = {}
    with tqdm(desc=description, total=len(groups), unit=" groups", delay=2) as bar:
        for row in answered.iter_rows():
            answers[row["start"]] = row["answer"]
            bar.update(min(batch_size, len(groups) - row["start"]))
    tables = [pyarrow.ipc.open_stream(answers[start]).read_all() for start in sorted(answers)]
    return Dataset(pyarrow.concat_tables(tables) if tables else features.arrow_schema.empty_table())


@dataclass
class _Worker:
    """Applies the function to batches of the groups, given by the number of their first row."""

    groups: Dataset
    function: BatchFunction
    kwargs: dict[str, Any]
    features: Features
    batch_size: int
    threads: int | None
    directory: str

    def __post_init__(self) -> None:
        # so that relative paths of models, caches and functions are valid on the worker
        if os.path.isdir(self.directory):
            os.chdir(self.directory)
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return one Arrow stream per start. Arrow keeps nested lists and strings unchanged."""
        starts = [int(start) for start in batch["start"]]
        return {"start": starts, "answer": [self._answer(start) for start in starts]}

    def _answer(self, start: int) -> bytes:
        rows = self.groups[start : start + self.batch_size]
        table = Dataset.from_dict(self.function(rows, **self.kwargs), features=self.features).data.table
        sink = io.BytesIO()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()
