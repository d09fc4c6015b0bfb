"""Axolotl's LoRA kernels beside shared rows, as far as they run on a CPU."""

import os
from pathlib import Path

import pytest
from helpers.processes import AXOLOTL, run_python

pytest.importorskip("axolotl")
pytestmark = pytest.mark.axolotl


def test_kernels_of_the_projections_compute_the_same(tmp_path):
    script = Path(__file__).parent / "helpers" / "lora_kernels_step.py"
    done = run_python([script, tmp_path], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, libraries=AXOLOTL)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "equal" in done.stdout
