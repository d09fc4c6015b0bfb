"""Ray Data: the same rules, scores and selection as here, for any number of workers. Needs the extra `ray`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Value
from helpers import messy
from helpers.selecting import job, reward_dir, write_lines

from mrt_plugin import load_groups, select
from mrt_plugin.engine import map_batches
from mrt_plugin.options import SelectionOptions
from mrt_plugin.pipeline.files import select_file
from mrt_plugin.scoring import ScoreCache
from mrt_plugin.selection import run_selection

os.environ["RAY_AUTH_MODE"] = "disabled"  # or it writes a token into the home directory
ray = pytest.importorskip("ray")

WORDS = ("one", "zwei", "three", "vier", "cinq")


@pytest.fixture(scope="module")
def cluster() -> Any:
    """A cluster of two workers on this machine."""
    ray.init(num_cpus=2, object_store_memory=150_000_000, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.processes
def test_answers_come_back_in_the_order_of_the_rows(cluster: Any) -> None:
    def describe(batch: dict[str, list[Any]], *, mark: str) -> dict[str, list[Any]]:
        return {"said": [f"{mark} {name} of {len(batch['id'])}" for name in batch["id"]]}

    groups = Dataset.from_list([{"id": str(number)} for number in range(25)])
    features = Features({"said": Value("string")})
    answered = map_batches(
        groups, describe, {"mark": "this is"}, features, batch_size=4, description="Describing", engine="ray"
    )
    assert answered["said"][:2] == ["this is 0 of 4", "this is 1 of 4"]
    assert answered["said"][-1] == "this is 24 of 1"
    assert len(answered) == 25


@pytest.mark.processes
def test_picks_are_the_same(cluster: Any) -> None:
    groups = Dataset.from_list(messy.pool(300, n=5)).shuffle(seed=3)  # with an index over the rows
    for selector in ("random_k", "diverse_best_k"):
        options = SelectionOptions(selector, k=2)
        here = run_selection(groups, options, seed=5)
        there = run_selection(groups, options, seed=5, engine="ray")
        assert there.picks == here.picks
        assert there.report == here.report


@pytest.mark.processes
def test_the_same_file(cluster: Any, tmp_path: Path) -> None:
    """Curated, scored by a function in a file, chosen with a budget, and weighed."""
    pool = write_lines(tmp_path / "pool.jsonl", messy.pool(60))
    (tmp_path / "mine.py").write_text("def score(prompt, responses): return [len(r) / 100 for r in responses]\n")
    selection = {"selector": "diverse_best_k", "seed": 7, "allocation": "adaptive", "mean_k": 2.0}
    more = {"curation": "default", "held_out": 0.2, "scorer": f"{tmp_path}/mine.py:score", "weights": "softmax"}
    here = select_file(job(pool, tmp_path / "a.jsonl", selection, **more))
    there = select_file(job(pool, tmp_path / "b.jsonl", selection, engine="ray", **more))
    assert here.output.sha256 == there.output.sha256
    assert here.manifest.read_text() == there.manifest.read_text().replace('"b.', '"a.')


@pytest.mark.processes
def test_a_reward_model_and_an_embedder(
    cluster: Any, tmp_path: Path, minilm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each engine has a cache of its own, so that nothing but the workers can have computed the second scores."""
    rows = [{"prompt": f"Say {n}.", "responses": [f"{n} {word} " * (n % 7 + 1) for word in WORDS]} for n in range(40)]
    rows[3]["responses"][2] = "very long " * 3000
    groups = load_groups(Dataset.from_list(rows))
    model = reward_dir(tmp_path / "model")
    options = SelectionOptions(
        "diverse_best_k", k=2, scorer=model, embedder=minilm, score_cache=str(tmp_path / "here")
    )
    here = run_selection(groups, options)
    there = run_selection(groups, replace(options, score_cache=str(tmp_path / "there")), engine="ray")
    assert there.groups["scores"][:] == here.groups["scores"][:]
    assert there.picks == here.picks
    assert there.report == here.report
    assert len(ScoreCache(tmp_path / "there")) == len(ScoreCache(tmp_path / "here")) == 2 * 40 * len(WORDS)
    said = "1 conversations are longer than"
    assert [said in record.getMessage() for record in caplog.records].count(True) == 2


@pytest.mark.processes
def test_an_error_of_a_worker_reaches_the_user(cluster: Any) -> None:
    def nonsense(texts: list[str]) -> list[list[float]]:
        return [[float("nan")] for _ in texts]

    with pytest.raises(Exception, match="not finite"):
        select(Dataset.from_list(messy.pool(5)), "diverse_k", k=2, embedder=nonsense, engine="ray")
