"""Axolotl's LoRA kernels beside shared rows, as far as they run on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("axolotl")
pytestmark = pytest.mark.axolotl
HERE = Path(__file__).parent


def test_kernels_of_the_projections_compute_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "lora_kernels_step.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(HERE), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "equal" in done.stdout
