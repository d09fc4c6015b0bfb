"""Tests that need a GPU. `make test-gpu` collects them, `make test` does not. Without a GPU each is skipped.

What they measure goes into the file that the variable MRT_GPU_RECORDS names, one JSON object per line.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECORDS = os.environ.get("MRT_GPU_RECORDS")
collect_ignore_glob = [] if RECORDS else ["test_*.py"]  # importing torch in order to skip takes seconds


@pytest.fixture(autouse=True)
def cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    return "cuda"


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    def write(**measured: Any) -> None:
        with Path(str(RECORDS)).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": request.node.name, **measured}) + "\n")

    return write
