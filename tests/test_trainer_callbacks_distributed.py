"""What looks at a run, over two gloo processes: they sample, stop and fail together."""

import json

from helpers.processes import gloo


def test_two_processes_come_to_the_same_decisions(tmp_path):
    """Only the first samples; both stop at the same step, and both fail."""
    gloo(2, "watched_run.py", str(tmp_path))
    first, second = (json.loads((tmp_path / f"process_{rank}.json").read_text()) for rank in range(2))
    for run in ("stops", "fails"):
        assert {key: value for key, value in first[run].items() if key != "rank"} == {
            key: value for key, value in second[run].items() if key != "rank"
        }
    assert first["stops"]["processes"] == 2
    assert first["stops"]["steps"] < first["stops"]["planned"]
    assert all(0 <= entry["eval_coverage"] <= 1 for entry in first["stops"]["evaluations"])
    assert "ok: the loss falls" in first["fails"]["failure"]
    assert "FAILED: 0 of 8 answers are well formed" in first["fails"]["failure"]
