"""Train the longest rows of a recipe as `axolotl train` does, for two or three steps, and write what they needed.

`python -m mrt_plugin.doctor.step RECIPE FOLDER` is the process that `measure_recipe` starts.
"""

import errno
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from mrt_plugin.axolotl.checks import check_lengths
from mrt_plugin.bench.probes import PeakMemory
from mrt_plugin.doctor.machine import GIB, find_device
from mrt_plugin.doctor.measure import MeasuredStep
from mrt_plugin.trainer.prepare import row_tokens

LEFT_OUT = {
    **dict.fromkeys(("use_wandb", "use_mlflow", "use_tensorboard", "use_comet", "use_trackio", "use_swanlab"), False),
    **dict.fromkeys(("save_steps", "eval_steps", "early_stopping_patience", "profiler_steps"), None),
    **dict.fromkeys(("save_strategy", "eval_strategy"), "no"),
    **dict.fromkeys(("load_best_model_at_end", "save_first_step"), False),
}
"""What a measured run leaves out: evaluations, checkpoints and reports to others."""
NOT_WATCHED = {"early_stopping": None, "sample_prompts": 0, "smoke_steps": None, "overfit_limit": 0.0}
SHARDED = ("fsdp", "fsdp_config", "deepspeed", "tensor_parallel_size", "context_parallel_size", "dp_shard_size")


def measure(recipe: str, folder: str, say: Callable[[str], None]) -> MeasuredStep:
    """Build Axolotl's trainer from the recipe, give it the longest rows, and measure a step after a warm-up step.

    The trainer is built with all the data, so that the layout is chosen and proved as in a run.

    Raises:
        ValueError: if the recipe needs several processes.
    """
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import setup_model_and_trainer

    say("reading the recipe and its data")
    with tempfile.TemporaryDirectory() as output:
        cfg = load_cfg(recipe, output_dir=output, dataset_prepared_path=folder)
        refuse_sharding(cfg)
        meta = load_datasets(cfg=cfg)
        on_gpu = torch.cuda.is_available()
        cfg.update({**LEFT_OUT, "max_steps": 2 if on_gpu else 3})
        cfg.mrt.update(NOT_WATCHED)
        say("loading the model and proving the layout")
        trainer = setup_model_and_trainer(cfg, meta)[0]
        trainer.args.eval_strategy, trainer.args.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
        rows = trainer.train_dataset
        trainer.train_dataset = rows.select(longest_rows(row_tokens(rows, trainer.layout), cfg))
        trainer.args.curriculum_sampling, trainer._prefix_tree = True, None  # in this order
        watch, batches = _Watch(say, on_gpu), record_batches(trainer)
        trainer.add_callback(watch)
        trainer.train()
    rows, tokens = max(batches, key=math.prod)
    return MeasuredStep(
        layout=trainer.layout,
        backend=trainer._backend.name,
        device=find_device().name,
        rows=rows,
        tokens=tokens,
        micro_batches=len(batches) // cfg.max_steps,
        seconds=watch.seconds,
        resting=watch.memory.resting / GIB,
        peak=(watch.memory.resting + watch.memory.step) / GIB,
        process=watch.process_bytes() / GIB,
    )


def refuse_sharding(cfg: Mapping[str, Any]) -> None:
    sharded = [key for key in SHARDED if cfg.get(key) not in (None, 0, 1, [], {})]
    if sharded:
        raise ValueError(
            f"{', '.join(sharded)}: weights or rows are split over several processes, and one is measured. Remove it "
            "to measure one process with all weights."
        )


def longest_rows(tokens: np.ndarray, cfg: Any) -> list[int]:
    """Return the rows with the most tokens, as many as an optimizer step takes. The longest are the last: the
    gradients are in memory by then."""
    order = np.argsort(tokens, kind="stable")[::-1]
    count = cfg.micro_batch_size * cfg.gradient_accumulation_steps
    if cfg.sample_packing:  # as many as fill the packed rows of a step
        needed = count * check_lengths(cfg, cfg.mrt)[1]
        count = int(np.searchsorted(np.cumsum(tokens[order]), needed)) + 1
    return [int(index) for index in order[:count][::-1]]


def record_batches(trainer: Any) -> list[tuple[int, int]]:
    """Return a list to which the trainer adds each micro-batch that it trains: its rows, and tokens per row."""
    found: list[tuple[int, int]] = []
    compute_loss = trainer.compute_loss

    def recorded(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(tuple(inputs["input_ids"].shape))
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = recorded
    return found


class _Watch(TrainerCallback):
    """Measures the step after the warm-up step: on a GPU its time and memory; on a CPU its time, and the memory of
    another step, as the profiler that counts allocations there takes time."""

    def __init__(self, say: Callable[[str], None], on_gpu: bool) -> None:
        self._say, self._on_gpu = say, on_gpu
        self._began: list[float] = []
        self._ended: list[float] = []
        self._reserved = 0
        self.memory = PeakMemory()

    @property
    def seconds(self) -> float:
        return self._ended[1] - self._began[1]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._say("running the warm-up step")
        self._began.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        self._ended.append(time.perf_counter())
        left = args.max_steps - len(self._ended)
        if left == 0:
            self.memory.stop()
            return
        if left == 1:
            self._reserved = torch.cuda.max_memory_reserved() if self._on_gpu else 0
            self.memory.start(kwargs["model"], kwargs["optimizer"])
        self._say("running the measured step")
        self._began.append(time.perf_counter())

    def process_bytes(self) -> int:
        if self._on_gpu:
            return max(self._reserved, torch.cuda.max_memory_reserved())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or in the process."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    words = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc", "status_alloc_failed")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def main(recipe: str, folder: str) -> int:
    with os.fdopen(os.dup(1), "w") as results:
        os.dup2(2, 1)  # Axolotl prints

        def write(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=results, flush=True)

        try:
            write({"step": asdict(measure(recipe, folder, lambda stage: write({"stage": stage})))})
        except Exception as error:  # any failure is a finding for the user
            out_of_memory = is_out_of_memory(error)
            found = error.__cause__ if out_of_memory and error.__cause__ is not None else error  # without our advice
            kind = "" if isinstance(found, ValueError) else f"{type(found).__name__}: "
            write({"problem": f"{kind}{found}", "out_of_memory": out_of_memory})
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
