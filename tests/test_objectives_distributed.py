"""Steps of ranking objectives and token losses over two gloo processes are those of one."""

import json

import pytest
import torch
from helpers import tiny
from helpers.processes import gloo
from helpers.ranked import directly, figures, log_probabilities, make_ranked, token_directly
from helpers.training import relative

RUNS = {
    "pro": {"objective": "pro"},
    "plackett_luce": {"objective": "plackett_luce", "reference": "none"},
    "initial": {"objective": "plackett_luce", "plackett_luce_beta": 0.3},
    "fork": {"objective": "pro", "prefix_backend": "fork"},
    "expanded": {"objective": "pro", "layout": "expanded"},
    "gem": {"objective": "gem"},
    "sharded pro": {"objective": "pro", "sharded": True},
    "sharded gem": {"objective": "gem", "sharded": True},
    "sharded dft": {"objective": "dft", "sharded": True},
}


@pytest.mark.processes
def test_two_processes(tmp_path):
    """Seven groups in two micro-batches of two on each process: one place is filled with nothing."""
    common = {"groups": 7, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    common |= {"layout": "shared_prefix", "score_cache": str(tmp_path / "cache")}
    gloo(2, "objectives_step.py", str(tmp_path), json.dumps({name: common | run for name, run in RUNS.items()}))
    groups = make_ranked(7)
    expected = {"pro": directly(groups, "pro"), "plackett_luce": directly(groups, "plackett_luce")}
    with torch.no_grad():
        references = [log_probabilities(tiny.llama().eval(), row, tiny.tokenizer())[0] for row in groups]
    expected["initial"] = directly(groups, "plackett_luce", references=references, beta=0.3)
    for name, run in RUNS.items():
        found = torch.load(tmp_path / f"{name}.pt", weights_only=False)
        assert found["processes"] == 2
        objective = run["objective"]
        if objective in ("gem", "dft"):
            loss, gradient = token_directly(groups, objective)
        else:
            loss, gradient, seen = expected.get(name, expected["pro"])
            if name == "initial":  # the model is its reference: which margin is above 0 is rounding
                seen = {key: value for key, value in seen.items() if key != "ranking_accuracy"}
            assert {key: found["logged"][key] for key in seen} == pytest.approx(seen, rel=1e-4, abs=1e-5)
        assert found["loss"] == pytest.approx(loss, rel=1e-5), name
        assert relative(found["gradient"], gradient) < 1e-5, name
    held_out = []
    for row in make_ranked(5, first=20):
        with torch.no_grad():
            sums, lengths = log_probabilities(tiny.llama().eval(), row, tiny.tokenizer())
        means = [own / length for own, length in zip(sums, lengths, strict=True)]
        held_out.append((means, sums, lengths, row["scores"]))
    before = torch.load(tmp_path / "pro.pt", weights_only=False)["before"]
    for name, value in figures(held_out).items():
        assert before[f"eval_{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5)
