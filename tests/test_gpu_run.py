"""What `make test-gpu` does, as far as a CPU can: its comparisons, its bench, its summary, its time limits."""

import dataclasses
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers.half_precision import CASES, check
from transformers import LlamaConfig, LlamaForCausalLM

from mrt_plugin.attention.two_part import TwoPartBackend
from mrt_plugin.bench.model import SIZES, ModelChoice, load_model

FOLDER = Path(__file__).parent / "gpu"
script = runpy.run_path(str(FOLDER / "run.py"))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.size == 64 and case.dtype == torch.bfloat16], ids=str)
def test_the_comparison_of_half_precision_holds_on_a_cpu(case):
    check(case, "cpu")


def test_the_comparison_of_half_precision_finds_an_error(monkeypatch):
    from helpers import half_precision

    case = dataclasses.replace(CASES[0], window=40)
    wrong = half_precision.RowPlan
    monkeypatch.setattr(half_precision, "RowPlan", lambda rows, window: wrong(rows, 39))
    monkeypatch.setattr(wrong, "of", lambda self, window: (self.sliding, 39))
    with pytest.raises(AssertionError, match="output errs by"):
        check(case, "cpu")


def test_the_cases_are_those_that_matter():
    assert {case.size for case in CASES} == {64, 96, 128, 256}
    assert {case.dtype for case in CASES} == {torch.bfloat16, torch.float16}
    for choice in ("window", "sink", "rows", "key_heads"):
        assert len({getattr(case, choice) for case in CASES}) > 1


def test_a_part_that_hangs_is_stopped_with_its_children():
    command = [sys.executable, "-c", "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '60'])"]
    status, output, took = script["run_bounded"](command, 3.0)
    assert status is None
    assert output.strip() == "begun"
    assert took < 30


def test_a_part_that_fails_keeps_its_output(tmp_path):
    part = script["run_bench"]("wrong", tmp_path, ["--size", "huge"])
    assert not part["ok"]
    assert "choose llama-8b or qwen-4b" in part["output"]
    assert script["goals"](part) == []
    summary = {
        "gpu": None,
        "torch": "2",
        "transformers": "5",
        "trl": "1",
        "seconds": 1.0,
        "goals": [],
        "parts": [part],
    }
    shown = script["show"](summary)
    assert "| bench wrong |" in shown
    assert "| **no** | exit status 1 |" in shown
    assert "choose llama-8b" in shown


@pytest.mark.slow
def test_the_bench_and_its_summary(tmp_path):
    part = script["run_bench"]("small", tmp_path, ["--cpu", "--vocabulary", "300"], ["8,4,2", "9,12,6,2"])
    assert part["ok"], part
    assert part["ended"] == "complete"
    rows = script["goals"](part)
    assert [row["shape"] for row in rows] == ["8,4,2", "9,12,6,2"]
    arms = {arm["name"]: arm for arm in part["result"]["shapes"][0]["arms"]}
    assert rows[0]["speedup"] == arms["mrt shared sdpa"]["speedup"]
    assert arms[rows[0]["trl"]]["speedup"] == 1
    assert rows[0]["reached"] == (rows[0]["speedup"] >= 0.85 * rows[0]["ratio"])
    summary = {"gpu": "a card", "torch": "2", "transformers": "5", "trl": "1", "seconds": 9.0}
    shown = script["show"]({**summary, "goals": rows, "parts": [part]})
    assert f"| small | 8,4,2 | {rows[0]['ratio']:.2f} | {rows[0]['trl']} | {rows[0]['speedup']:.2f} |" in shown
    json.dumps(part)


def test_the_published_figure_is_compared_at_its_shape_only():
    def row(**shape):
        arms = [{"name": "trl nll", "trl": True, "speedup": 1.0, "pairs_per_second": 2.0}]
        arms.append(
            {"name": "mrt shared sdpa", "trl": False, "speedup": 2.9, "fraction": 0.8, "pairs_per_second": 5.8}
        )
        result = {"shapes": [{"shape": "s", "token_ratio": 3.3, "arms": arms, **shape}]}
        (found,) = script["goals"]({"part": "bench x", "result": result})
        return found

    assert row(prompt=1024, response=256, k=8, system=0)["ahead of published"] is True
    assert row(prompt=1024, response=256, k=8, system=0)["reached"] is False
    assert "ahead of published" not in row(prompt=512, response=512, k=4, system=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.slow
def test_without_a_gpu_every_test_is_collected_and_skipped(tmp_path):
    for name in script["TESTS"]:
        part = script["run_tests"](name, tmp_path)
        assert part["ok"], part
        assert "skipped" in part["ended"]
        assert "passed" not in part["ended"]
        assert part["measured"] == []


def test_other_runs_do_not_collect_them():
    names = {"MRT_GPU_RECORDS"} & set(os.environ)
    assert not names
    assert runpy.run_path(str(FOLDER / "conftest.py"))["collect_ignore_glob"] == ["test_*.py"]


def bodies(name):
    """The functions of a file of GPU tests, to call on a CPU."""
    return runpy.run_path(str(FOLDER / name))


@pytest.fixture
def record():
    """Stands for the fixture that writes into a file; what was recorded is JSON."""
    found = []
    yield lambda **measured: found.append(json.loads(json.dumps(measured)))
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_the_body_of_the_proof_on_a_cpu(name, record):
    bodies("test_gpu_kernels.py")["test_the_proof_of_sdpa"](name, torch.float32, "cpu", record)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [None, True])
def test_the_body_of_the_fork_on_a_cpu(checkpointing, record):
    bodies("test_gpu_kernels.py")["test_the_fork"]("qwen3_5", checkpointing, "cpu", record)


@pytest.mark.slow
def test_the_comparison_of_the_backends_on_a_cpu():
    kernels = bodies("test_gpu_kernels.py")
    for lora in (False, True):
        model = kernels["build"]("llama", **kernels["WIDE"])
        model = kernels["lora"](model) if lora else model
        packed, backend = kernels["PACKED"], TwoPartBackend(model.config)
        loss, gradient = kernels["differences"](model, backend, packed, kernels["expanded"](model, packed))
        assert loss < 1e-5
        assert gradient < 1e-4


@pytest.mark.slow
def test_the_bodies_of_the_steps_on_a_cpu(monkeypatch, record):
    pytest.importorskip("bitsandbytes")
    tiny = {"vocab_size": 250, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    monkeypatch.setitem(SIZES, "tiny", (LlamaForCausalLM, LlamaConfig, tiny))
    steps = bodies("test_gpu_steps.py")
    choice = ModelChoice(size="tiny", layers=2, dtype="bfloat16", load_in_4bit=True)
    setting = "tiny", load_model(choice, "cpu", gradient_checkpointing=True)
    steps["test_qlora_with_checkpointing_trains_the_same_in_every_arm"](setting, record)
