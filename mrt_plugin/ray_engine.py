"""Run a stateless batch function with Ray Data, on one or more machines."""

import importlib.util
import io
import os
from collections.abc import Callable
from typing import Any

import pyarrow
from datasets import Dataset, Features
from tqdm.auto import tqdm

BatchFunction = Callable[..., dict[str, list[Any]]]
"""Maps the columns of a batch to the columns of the result. One row per group, each computed separately."""


def require_ray() -> Any:
    """Import and return Ray, with Ray Data.

    Raises:
        ImportError: if it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError("engine='ray' needs Ray: pip install 'mrt-plugin[ray]'.")
    import ray
    import ray.data

    return ray


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
    """Run `groups.map(function, batched=True, fn_kwargs=kwargs, remove_columns=...)` on Ray Data.

    The driver sends only row numbers. Each worker reads its rows from the datasets cache, which must be on a disk
    that all machines can read (`HF_DATASETS_CACHE`). Workers are actors that receive `kwargs` once, so a model is
    loaded once per worker. Results arrive in any order and are sorted by row, so they do not depend on the number of
    workers. An existing connection to Ray (`RAY_ADDRESS`) is used; otherwise Ray is started on this machine.

    Args:
        groups: n rows.
        function: a stateless function, as for `datasets.map`.
        kwargs: its other arguments; they are pickled.
        features: the features of the result.
        batch_size: rows per call. Batches always begin at multiples of it.
        description: the text of the progress bar.
        threads: for a function that runs a model: the cores of a worker. At most the cores of the smallest machine
            are used. The model runs with the same number of threads, because the last digits of its results depend
            on that number. Where machines have GPUs, a worker gets one.

    Returns:
        The results, n rows.
    """
    ray = require_ray()
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
    workers = max(1, min(workers, len(batches)))
    starts = ray.data.from_items(batches)
    answered = starts.map_batches(
        _Worker,
        fn_constructor_args=(groups, function, kwargs, features, batch_size, threads, os.getcwd()),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        **needs,
    )
    answers: dict[int, bytes] = {}
    with tqdm(desc=description, total=len(groups), unit=" groups", delay=2) as bar:
        for row in answered.iter_rows():
            answers[row["start"]] = row["answer"]
            bar.update(min(batch_size, len(groups) - row["start"]))
    tables = [pyarrow.ipc.open_stream(answers[start]).read_all() for start in sorted(answers)]
    return Dataset(pyarrow.concat_tables(tables) if tables else features.arrow_schema.empty_table())


class _Worker:
    """Applies the function to batches of the groups, given by the number of their first row."""

    def __init__(
        self,
        groups: Dataset,
        function: BatchFunction,
        kwargs: dict[str, Any],
        features: Features,
        batch_size: int,
        threads: int | None,
        directory: str,
    ) -> None:
        self.groups, self.function, self.kwargs = groups, function, kwargs
        self.features, self.batch_size = features, batch_size
        if os.path.isdir(directory):  # so that relative paths of models, caches and functions are valid on the worker
            os.chdir(directory)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)

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
