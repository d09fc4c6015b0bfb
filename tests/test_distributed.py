"""A step over several gloo processes equals the same step in one, for rows that do not divide by the processes too."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def run_step(folder: Path, processes: int, **settings) -> dict:
    """One optimizer step over all groups, in `processes` processes."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
        "--master_addr", "127.0.0.1", "--master_port", str(port),
        str(HERE / "distributed_step.py"), str(folder), json.dumps(settings),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = torch.load(folder / "step.pt", weights_only=True)
    assert result["processes"] == processes
    return result


def assert_same(result: dict, reference: dict) -> None:
    assert result["loss"] == pytest.approx(reference["loss"], rel=1e-5)
    assert result["eval_loss"] == pytest.approx(reference["eval_loss"], rel=1e-4)
    difference = (result["gradient"] - reference["gradient"]).norm() / reference["gradient"].norm()
    assert difference < 1e-5


@pytest.mark.parametrize("aggregation", ["token", "prompt", "response"])
def test_two_processes_and_seven_groups(tmp_path, aggregation):
    common = {"groups": 7, "loss_aggregation": aggregation, "layout": "shared_prefix"}
    alone = run_step(tmp_path / "1", 1, per_device_train_batch_size=7, **common)
    over_two = run_step(tmp_path / "2", 2, per_device_train_batch_size=2, gradient_accumulation_steps=2, **common)
    assert_same(over_two, alone)


@pytest.mark.parametrize("layout", ["shared_prefix", "expanded"])
def test_four_processes_with_gradient_checkpointing(tmp_path, layout):
    common = {"groups": 10, "layout": layout}
    alone = run_step(tmp_path / "1", 1, per_device_train_batch_size=10, **common)
    over_four = run_step(
        tmp_path / "4",
        4,
        per_device_train_batch_size=3,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        **common,
    )
    assert_same(over_four, alone)
