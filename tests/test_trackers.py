"""What experiment trackers get of a run, read back from what each of them wrote, without a network."""

import inspect
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import tiny
from helpers.training import config, make_groups
from transformers import TrainerCallback

from mrt_plugin import MultiResponseSFTTrainer, load_groups
from mrt_plugin.groups.write import content_sha256, sha256_of, write_groups


def missing(tracker: str) -> str | None:
    """Why a tracker cannot be tried here, or None."""
    module = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}[tracker]
    if find_spec(module) is None:
        return f"needs {module} (pip install {module})"
    if tracker == "trackio":
        import trackio

        if "bucket_id" not in inspect.signature(trackio.init).parameters:
            return f"transformers needs a newer Trackio than {trackio.__version__} (pip install -U trackio)"
    return None


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run that reported to every tracker that is installed."""
    folder = tmp_path_factory.mktemp("tracked")
    write_groups(make_groups(6, 4), folder / "pool.jsonl")
    trackers = [name for name in ("tensorboard", "wandb", "trackio") if missing(name) is None] or ["none"]
    places = {"TENSORBOARD_LOGGING_DIR": folder / "events", "TRACKIO_DIR": folder / "trackio", "WANDB_DIR": folder}
    env = {**os.environ, **{name: str(place) for name, place in places.items()}, "WANDB_MODE": "offline"}
    script = Path(__file__).parent / "helpers" / "tracked_run.py"
    env["PYTHONPATH"] = os.pathsep.join([str(script.parent.parent), *filter(None, [env.get("PYTHONPATH")])])
    # Trackio reads its folder when it is imported.
    done = subprocess.run([sys.executable, script, folder, *trackers], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def logged(folder: Path, name: str) -> list[float]:
    history = json.loads((folder / "state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def check_facts(found, tmp_path) -> None:
    """Compare the logged facts with the run: its file, its options, what its layout is."""
    expected = {
        "mrt/data": "pool.jsonl",
        "mrt/data_sha256": sha256_of(tmp_path / "pool.jsonl"),
        "mrt/pool_hash": content_sha256(load_groups(tmp_path / "pool.jsonl")),
        "mrt/k_of_n": "2 of 4",
        "mrt/pool_groups": 6,
        "mrt/pool_responses": 24,
        "mrt/groups": 6,
        "mrt/pairs": 12,
        "mrt/selector": "random_k",
        "mrt/k": 2,
        "mrt/selection_seed": 7,
        "mrt/objective": "nll",
        "mrt/layout": "shared_prefix",
        "mrt/backend": "sdpa",
        "mrt/held_out_groups": 8,
        "mrt/curation_in_run": "none",
    }
    assert {name: found[name] for name in expected} == expected
    assert found["mrt/layout_reason"].startswith("the token ratio is")
    assert found["learning_rate"] == 1e-3, "the arguments are logged beside the facts"


def test_tensorboard(run):
    if why := missing("tensorboard"):
        pytest.skip(why)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "events")).Reload()
    [found] = events.Tensors("args/text_summary")
    check_facts(json.loads(found.tensor_proto.string_val[0]), run)
    scalars = set(events.Tags()["scalars"])
    assert {"train/pairs_per_second", "train/prompt_tokens_saved_share", "eval/train_gap"} <= scalars
    assert [point.value for point in events.Scalars("eval/loss")] == pytest.approx(logged(run, "eval_loss"), rel=1e-6)


def records(log: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log with a header of 7 bytes, which is what Weights & Biases writes offline."""
    size, place, whole = 32768, 7, b""
    while place + 7 <= len(log):
        if size - place % size < 7:  # no record begins in the last bytes of a block
            place += size - place % size
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        whole += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_weights_and_biases(run):
    if why := missing("wandb"):
        pytest.skip(why)
    from wandb.proto import wandb_internal_pb2

    [file] = run.glob("wandb/offline-run-*/*.wandb")
    settings, metrics = {}, {}
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.config.update:
            settings[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.history.item:
            metrics[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    check_facts(settings, run)
    assert "train/pairs_per_second" in metrics
    assert metrics["eval/loss"] == logged(run, "eval_loss")[-1]


def test_trackio(run):
    if why := missing("trackio"):
        pytest.skip(why)
    [file] = (run / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        [(settings,)] = database.execute("SELECT config FROM configs").fetchall()
        metrics = [json.loads(row) for (row,) in database.execute("SELECT metrics FROM metrics")]
    check_facts(json.loads(settings), run)
    assert any("train/pairs_per_second" in row for row in metrics)
    assert [row["eval/loss"] for row in metrics if "eval/loss" in row] == logged(run, "eval_loss")


class ReadsArguments(TrainerCallback):
    """Keeps what any tracker of transformers reads when training begins."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.found = args.to_dict()


def test_several_datasets_are_joined_and_what_is_not_known_is_left_out():
    from mrt_plugin.trainer.run_facts import DataFacts, RunFacts

    facts = RunFacts("nll", "token", "expanded", "as requested", "expanded", None)
    assert not {"mrt/data", "mrt/k", "mrt/curation_in_run", "mrt/held_out_groups"} & set(facts.logged())
    one, other = DataFacts("a.jsonl", selector="best_k", k=2), DataFacts("b.jsonl", k=2)
    found = RunFacts("nll", "token", "expanded", "as requested", "expanded", None, (one, other)).logged()
    assert found["mrt/data"] == "a.jsonl, b.jsonl"
    assert found["mrt/selector"] == "best_k, not known"
    assert found["mrt/k"] == 2
    json.dumps(found)


def test_rows_prepared_before_are_of_unknown_data(tmp_path):
    from mrt_plugin import prepare_groups
    from mrt_plugin.options import MultiResponseOptions

    rows, _ = prepare_groups(
        load_groups(make_groups(6, 4)), tiny.tokenizer(), MultiResponseOptions(k=2), max_length=512, seed=0
    )
    reads = ReadsArguments()
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(tmp_path, max_steps=1),
        train_dataset=rows,
        processing_class=tiny.tokenizer(),
        callbacks=[reads],
    )
    trainer.train()
    assert reads.found["mrt/layout"] == "shared_prefix"
    assert "mrt/data" not in reads.found
    trainer.create_model_card(model_name="x")
    assert "|Data|not known to this run" in (tmp_path / "out" / "README.md").read_text()
