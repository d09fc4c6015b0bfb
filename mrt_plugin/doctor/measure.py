"""Measure a training step of a recipe in a process of its own, which may run out of memory."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

NO_RESULT = "no result"
REPORTED_LINES = 5
"""Last lines of a failed process's messages that its problem quotes."""


@dataclass(frozen=True)
class MeasuredStep:
    """One optimizer step on the longest rows. Memory is in GiB."""

    layout: str
    backend: str
    device: str
    rows: int
    """Rows of the largest micro-batch. `tokens` are those of each of its rows."""
    tokens: int
    micro_batches: int
    seconds: float
    resting: float
    """Weights and optimizer state, between steps."""
    peak: float
    """Peak of the step, weights and optimizer state included."""
    process: float
    """Peak of the process from loading the model to the last step: on CUDA what PyTorch has reserved, on a CPU what
    the system counts (with the libraries)."""


@dataclass(frozen=True)
class Measurement:
    """What a measuring process found: the step, or why there is none."""

    step: MeasuredStep | None = None
    problem: str | None = None
    out_of_memory: bool = False


def measure_recipe(recipe: Path, prepared: Path, say: Callable[[str], None] = lambda stage: None) -> Measurement:
    """Run a warm-up step and a measured step of an Axolotl recipe in another process, on its first GPU or on the CPU.

    `prepared` is a folder for prepared data, which is used if it is there already. `say` gets the name of each stage.
    """
    return run_measuring([sys.executable, "-m", "mrt_plugin.doctor.step", str(recipe), str(prepared)], say)


def run_measuring(command: Sequence[str], say: Callable[[str], None] = lambda stage: None) -> Measurement:
    """Run a command that writes what it measures to stdout, one JSON object per line (`mrt_plugin.doctor.step`)."""
    stage, found = "starting", Measurement(problem=NO_RESULT)
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    with (
        tempfile.TemporaryFile("w+", errors="replace") as messages,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True, env=env) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if "stage" in message:
                stage = message["stage"]
                say(stage)
            elif "step" in message:
                found = Measurement(MeasuredStep(**message["step"]))
            else:
                found = Measurement(problem=message["problem"], out_of_memory=message["out_of_memory"])
        status = process.wait()
        messages.seek(0)
        last = messages.read().splitlines()[-REPORTED_LINES:]
    if found.step is not None:
        return found
    if status < 0:
        ended = f"The process was ended by {signal.Signals(-status).name}."
        killed = status == -signal.SIGKILL  # by the system, without memory
        found = Measurement(problem="\n".join([ended, *last]), out_of_memory=killed)
    elif found.problem == NO_RESULT:
        found = Measurement(problem="\n".join([f"The process ended with status {status}.", *last]))
    if found.out_of_memory:
        from mrt_plugin.trainer.mixin import OUT_OF_MEMORY  # torch, which a measurement that goes well needs not here

        found = replace(found, problem=f"{OUT_OF_MEMORY}\n{found.problem}")
    return replace(found, problem=f"--measure: while {stage}: {found.problem}")
