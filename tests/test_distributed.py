"""A step over several gloo processes equals the same step in one, for rows that do not divide by the processes too."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from helpers import tiny
from helpers.fsdp_step import gradient, make_rows
from helpers.processes import gloo
from helpers.training import make_groups, make_nested_groups, one_pair_at_a_time, one_step, relative


def run_steps(
    folder: Path, processes: int, runs: dict[str, dict], script: str = "distributed_step.py"
) -> dict[str, dict]:
    """One optimizer step over all groups for each run, in `processes` processes."""
    gloo(processes, script, str(folder), json.dumps(runs))
    results = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in runs}
    assert all(result["processes"] == processes for result in results.values())
    return results


def assert_same(result: dict, tmp_path: Path, groups: int, **settings) -> None:
    """The step of several processes is the step of this one on the same groups."""
    alone = one_step(tmp_path, make_groups(groups, 3, weights=True), per_device_train_batch_size=groups, **settings)
    assert result["loss"] == pytest.approx(alone.loss, rel=1e-5)
    assert relative(result["gradient"], alone.gradient) < 1e-5


@pytest.mark.processes
def test_two_processes(tmp_path):
    """Seven groups in two micro-batches of two on each process: one place is left, and filled with nothing.

    Six groups in batches of four: with batches of equal prompts only, the fork runs the model more often on one
    process than on the other. A process whose model cannot share, or fails with any error while it is proved, makes
    both expand. A model that reads padding runs once per pair, twelve times on one process and six times on the other.

    Five groups that form trees of several levels, with gradient checkpointing, are compared with one pair at a time.
    """
    six = {"groups": 6, "per_device_train_batch_size": 4}
    runs = {
        aggregation: {
            "groups": 7,
            "loss_aggregation": aggregation,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        }
        for aggregation in ("token", "prompt", "response")
    }
    runs["fork"] = {**six, "layout": "shared_prefix", "prefix_backend": "fork", "forward": 0}
    runs["recomputed fork"] = {
        **runs["fork"],
        "prefix_check": True,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    }
    runs["unused"] = {**six, "ddp_find_unused_parameters": True}
    runs["grouped"] = {
        "groups": 7,
        "group_by_prefix": True,
        "train_sampling_strategy": "random",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    for broken in ("ignores", "fails", "padding"):
        runs[broken] = {**six, "layout": "auto", "prefix_check": True, "broken": broken}
    tree = {"groups": 5, "nested": True, "layout": "shared_prefix", "gradient_checkpointing": True}
    for reentrant in (True, False):
        checkpointing = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        runs[f"tree {reentrant}"] = {
            **tree,
            **checkpointing,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        }
    results = run_steps(tmp_path, 2, runs)
    loss, expected = one_pair_at_a_time(make_nested_groups().select(range(5)))
    for reentrant in (True, False):
        result = results[f"tree {reentrant}"]
        assert result["layouts"] == ["shared_prefix sdpa"] * 2
        assert result["loss"] == pytest.approx(loss, rel=1e-5)
        assert relative(result["gradient"], expected) < 1e-4
    for aggregation in ("token", "prompt", "response"):
        assert_same(results[aggregation], tmp_path, 7, loss_aggregation=aggregation)
    assert_same(results["grouped"], tmp_path, 7)
    for name, layout in (
        ("fork", "shared_prefix fork"),
        ("recomputed fork", "shared_prefix fork"),
        ("ignores", "expanded expanded"),
        ("fails", "expanded expanded"),
        ("padding", "expanded one_by_one"),
    ):
        assert results[name]["layouts"] == [layout] * 2
    for name in ("fork", "recomputed fork", "unused", "ignores", "fails", "padding"):
        assert_same(results[name], tmp_path, 6)
    for name in ("fork", "recomputed fork"):
        assert len(set(results[name]["forwards"])) == 2, "as many forwards on both processes"
    # of one set of groups and the same small step, whatever the aggregation that made it
    trained = one_step(tmp_path, make_groups(7, 3, weights=True), per_device_train_batch_size=7).trainer
    assert results["token"]["eval_loss"] == pytest.approx(
        trained.evaluate(make_groups(7, 3, weights=True, first=7))["eval_loss"], rel=1e-3
    )


@pytest.mark.processes
def test_four_processes_with_gradient_checkpointing(tmp_path):
    common = {
        "groups": 10,
        "per_device_train_batch_size": 3,
        "gradient_checkpointing": True,
    }
    runs = {
        layout: {**common, "layout": layout, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        for layout, reentrant in (("shared_prefix", False), ("expanded", True))
    }
    for layout, result in run_steps(tmp_path, 4, runs).items():
        assert_same(result, tmp_path, 10, layout=layout)


@pytest.mark.processes
def test_fsdp2_trains_the_same_step(tmp_path):
    """`auto` shares, after a proof through the wrapped model in the first step, or expands before the first update."""
    common = {"groups": 4, "per_device_train_batch_size": 2, "prefix_check": True, "sharded": True, "layout": "auto"}
    runs = {
        "shared": common,
        "checkpointing": {**common, "gradient_checkpointing": True, "eval_on_start": True},
        "half": {**common, "bf16": True},
        "expanded": {**common, "layout": "expanded"},
        "moves": {**common, "broken": "moves"},
        "fails": {**common, "broken": "fails"},
        "fails inside": {**common, "broken": "fails inside"},
    }
    results = run_steps(tmp_path, 2, runs)
    found = {name: result["layouts"] for name, result in results.items()}
    for broken in ("moves", "fails", "fails inside"):
        assert found.pop(broken) == ["expanded unshared"] * 2
    assert found.pop("expanded") == ["expanded sdpa"] * 2
    assert set(map(tuple, found.values())) == {("shared_prefix sdpa",) * 2}
    for name in ("shared", "checkpointing", "expanded", "moves", "fails", "fails inside"):
        assert_same(results[name], tmp_path, 4)


@pytest.mark.processes
def test_fsdp2_forks(tmp_path):
    """Processes run the model equally often, though their groups need unequal numbers of forwards."""
    common = {"groups": 6, "per_device_train_batch_size": 4, "prefix_check": True, "sharded": True, "forward": 0}
    common |= {"layout": "shared_prefix", "prefix_backend": "fork"}
    checkpointing = {"gradient_checkpointing": True, "eval_on_start": True}
    runs = {"fork": common}
    for reentrant in (True, False):
        kind = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        runs[f"recomputed {reentrant}"] = {**common, **checkpointing, **kind}
    for result in run_steps(tmp_path, 2, runs).values():
        assert result["layouts"] == ["shared_prefix fork"] * 2
        assert len(set(result["forwards"])) == 1
        assert_same(result, tmp_path, 6)


@pytest.mark.processes
def test_fsdp2_resumes_from_a_checkpoint(tmp_path):
    """Two new processes end where an uninterrupted run ends, with complete and with sharded weights on the disk."""
    runs = {
        "full": {"saved": "FULL_STATE_DICT"},
        "sharded": {"saved": "SHARDED_STATE_DICT"},
        "lora": {"saved": "SHARDED_STATE_DICT", "lora": True},
        "half": {"saved": "FULL_STATE_DICT", "lora": True},
    }
    for phase in ("whole", "resumed"):
        gloo(2, "resumed_run.py", str(tmp_path), phase, json.dumps(runs))
    for name in runs:
        whole, resumed = (torch.load(tmp_path / f"{name}-{phase}.pt") for phase in ("whole", "resumed"))
        if name == "half":
            assert "SHARDED_STATE_DICT" in resumed["refusal"]
            continue
        assert whole["layout"] == resumed["layout"] == "shared_prefix"
        assert resumed["losses"] == pytest.approx(whole["losses"], rel=1e-5), name
        start = tiny.llama().state_dict()
        for key, weight in whole["weights"].items():
            assert torch.allclose(resumed["weights"][key], weight, rtol=1e-5, atol=1e-7), (name, key)
            assert not torch.equal(weight, start.get(key, torch.zeros_like(weight))), (name, key)


@pytest.mark.processes
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="needs DeepSpeed, which compiles on the first run: DS_BUILD_OPS=0 pip install deepspeed",
)
def test_zero_3_trains_the_same_step(tmp_path):
    """Weights are gathered for each forward; the fork runs the model equally often on both processes."""
    common = {"groups": 4, "per_device_train_batch_size": 2, "prefix_check": True, "layout": "auto"}
    fork = {**common, "groups": 6, "per_device_train_batch_size": 4, "prefix_backend": "fork", "forward": 0}
    runs = {
        "shared": common,
        "checkpointing": {**common, "gradient_checkpointing": True, "eval_on_start": True},
        "fork": fork,
        "recomputed fork": {**fork, "gradient_checkpointing": True},
        "expanded": {**common, "layout": "expanded"},
        "moves": {**common, "broken": True},
    }
    layouts = {"fork": "shared_prefix fork", "recomputed fork": "shared_prefix fork", "expanded": "expanded sdpa"}
    layouts["moves"] = "expanded unshared"
    for name, result in run_steps(tmp_path, 2, runs, "zero_step.py").items():
        assert result["layouts"] == [layouts.get(name, "shared_prefix sdpa")] * 2, name
        assert_same(result, tmp_path, runs[name]["groups"])


@pytest.mark.processes
def test_fsdp2_shards_give_the_gradient_of_the_whole(tmp_path):
    """The head runs on its own input inside the forward of the sharded model, and once more in the backward pass.

    accelerate does not run FSDP without an accelerator, so the model is sharded by hand here.
    """
    gloo(2, "fsdp_step.py", str(tmp_path))
    alone = gradient(tiny.llama(), make_rows(), 4.0, 1)
    for way in ("1.13", "1.15"):
        sharded = torch.load(tmp_path / f"gradient-{way}.pt", weights_only=True)
        assert relative(sharded, alone) < 1e-5, way
