"""Ray Data: the same selection as here, for any number of workers. Needs the extra `ray`."""

import os
from pathlib import Path
from typing import Any

import messy
import pytest
from datasets import Dataset, Features, Value
from test_select_cli import BEST, job, write_lines

from mrt_plugin.selection import run_selection
from mrt_plugin.selection.files import select_file
from mrt_plugin.selection.ray_engine import map_on_ray

os.environ["RAY_AUTH_MODE"] = "disabled"  # or it writes a token into the home directory
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Any:
    """A cluster of two workers on this machine."""
    ray.init(num_cpus=2, object_store_memory=150_000_000, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_answers_come_back_in_the_order_of_the_rows(cluster: Any) -> None:
    def describe(batch: dict[str, list[Any]], *, mark: str) -> dict[str, list[Any]]:
        return {"said": [f"{mark} {name} of {len(batch['id'])}" for name in batch["id"]]}

    groups = Dataset.from_list([{"id": str(number)} for number in range(25)])
    answered = map_on_ray(groups, describe, {"mark": "this is"}, Features({"said": Value("string")}), batch_size=4)
    assert answered["said"][:2] == ["this is 0 of 4", "this is 1 of 4"]
    assert answered["said"][-1] == "this is 24 of 1"
    assert len(answered) == 25


@pytest.mark.parametrize("selector", ["random_k", "best_k", "diverse_best_k", "filter_then_spread", "all"])
def test_picks_are_the_same(cluster: Any, selector: str) -> None:
    groups = Dataset.from_list(messy.pool(300, n=5))
    shuffled = groups.shuffle(seed=3)  # with an index over the rows
    for data in (groups, shuffled):
        here, report = run_selection(data, selector, k=2, seed=5)
        there, remote = run_selection(data, selector, k=2, seed=5, engine="ray")
        assert there == here
        assert remote == report


def test_the_same_file(cluster: Any, tmp_path: Path) -> None:
    pool = write_lines(tmp_path / "pool.jsonl", messy.pool(60))
    more = {"curation": "default", "held_out": 0.2}
    here = select_file(job(pool, tmp_path / "a.jsonl", BEST, **more))
    there = select_file(job(pool, tmp_path / "b.jsonl", BEST, engine="ray", **more))
    assert here.output.sha256 == there.output.sha256
    assert here.manifest.read_text() == there.manifest.read_text().replace('"b.', '"a.')


def test_an_error_of_a_worker_reaches_the_user(cluster: Any) -> None:
    def nonsense(texts: list[str]) -> list[list[float]]:
        return [[float("nan")] for _ in texts]

    with pytest.raises(Exception, match="not finite"):
        run_selection(Dataset.from_list(messy.pool(5)), "diverse_k", k=2, embedder=nonsense, engine="ray")
