"""What an Axolotl run says of itself: its trackers, its model card, its metrics, and that it resumes where it was."""

import json
import re
from importlib.util import find_spec

import pytest
import yaml
from helpers import axolotl_recipe, hub_server
from helpers.axolotl_runs import axolotl
from helpers.wandb_run import read_run
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from mrt_plugin.groups.write import sha256_of
from mrt_plugin.trainer.metrics import ELSEWHERE, FROM_TRANSFORMERS, HELD_OUT, TRAINING

pytest.importorskip("axolotl")
pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.axolotl


def repeating(rows: list[dict]) -> list[dict]:
    """Groups whose first response is there twice."""
    return [row | {name: [*row[name], row[name][0]] for name in ("responses", "scores")} for row in rows]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_dir):
    """A folder where a recipe was prepared, then trained on what was prepared, and trained on from its checkpoint.

    The last run is pushed to a server that speaks the hub's protocol; what it got is in `pushed`.
    """
    folder = tmp_path_factory.mktemp("published")
    axolotl_recipe.write_rows(folder / "pool.jsonl", repeating(axolotl_recipe.groups()))
    settings = axolotl_recipe.recipe(
        folder,
        tiny_model_dir,
        datasets=[{"path": str(folder / "pool.jsonl"), "ds_type": "json", "type": "mrt_plugin.axolotl.best_k"}],
        mrt={"k": 2, "curation": ["duplicate_responses"]},
        val_set_size=0.3,
        evals_per_epoch=1,
        save_steps=2,
        max_steps=4,
        num_epochs=4,
        use_tensorboard=True,
        include_tkps=True,
    )
    recipe = axolotl_recipe.write(folder, settings)
    axolotl("preprocess", recipe, folder=folder)
    axolotl("train", recipe, "--launcher", "python", folder=folder, TENSORBOARD_LOGGING_DIR=str(folder / "events"))
    again = settings | {
        "output_dir": str(folder / "resumed"),
        "use_tensorboard": False,
        "use_wandb": find_spec("wandb") is not None,
        "wandb_project": "groups",
        "wandb_mode": "offline",
        "hub_model_id": "someone/run",
        "hub_strategy": "end",
    }
    recipe = axolotl_recipe.write(folder, again, "again.yaml")
    resume = ("--resume-from-checkpoint", str(folder / "out" / "checkpoint-2"))
    with hub_server.serve() as hub:
        variables = {"WANDB_DIR": str(folder), **hub.environment}
        axolotl("train", recipe, "--launcher", "python", *resume, folder=folder, libraries=(), **variables)
    (folder / "pushed").mkdir()
    for name, content in hub.repositories["someone/run"].items():
        (folder / "pushed" / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / "pushed" / name).write_bytes(content)
    return folder


def row(text: str, name: str) -> str:
    [found] = re.findall(rf"^\|{re.escape(name)}\|(.*)\|$", text, re.MULTILINE)
    return found


def test_the_card_has_our_section_in_axolotls_own(run):
    text = (run / "out" / "README.md").read_text()
    assert "See axolotl config" in text
    assert "### Training hyperparameters" in text
    assert text.count("## Multi-response training") == 1
    assert row(text, "Responses kept, K of N") == "**2 of 5** per prompt, by `best_k`, seed 7"
    assert row(text, "Data") == f"pool.jsonl, SHA-256 `{sha256_of(run / 'pool.jsonl')}`"
    prompts = int(row(text, "Trained on").split()[0])
    held_out = int(row(text, "Held out").split()[0])
    assert prompts + held_out == 20
    assert f"|duplicate_responses|{prompts}|{6 * prompts}|{prompts}|{5 * prompts}|" in text
    assert row(text, "Layout").startswith("`shared_prefix`, backend `sdpa`")
    assert row(text, "Length").startswith("4 optimizer steps")
    assert "axolotl train recipe.yaml" in text
    assert "axolotl 0" in row(text, "Versions")
    card = ModelCard(text)
    assert card.data.to_dict() == yaml.safe_load(text.split("---\n")[1])
    assert {"mrt", "multi-response", "axolotl"} <= set(card.data.tags)
    assert card.data.library_name == "peft"
    assert card.data.base_model is None, "a folder is no name on the hub"
    assert card.data.datasets is None, "a file is no dataset on the hub"


def test_a_push_has_the_card(run):
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= {
        str(file.relative_to(run / "pushed")) for file in (run / "pushed").rglob("*")
    }
    assert not list((run / "pushed").glob("checkpoint-*"))
    text = (run / "pushed" / "README.md").read_text()
    assert row(text, "Responses kept, K of N") == "**2 of 5** per prompt, by `best_k`, seed 7"
    assert row(text, "Length").startswith("4 optimizer steps")
    assert text.count("## Multi-response training") == 1
    assert "hf_notatoken" not in text


def test_trackers_get_the_facts_and_the_metrics_of_the_tables(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "events")).Reload()
    [found] = events.Tensors("args/text_summary")
    logged = json.loads(found.tensor_proto.string_val[0])
    expected = {"mrt/selector": "best_k", "selector": "best_k", "mrt/k": 2, "mrt/k_of_n": "2 of 5", "mrt/n_most": 5}
    assert {name: logged[name] for name in expected} == expected
    assert logged["mrt/data_sha256"] == sha256_of(run / "pool.jsonl")
    assert "duplicate_responses" in logged["mrt/curation_in_run"]
    names = {name.replace("train/", "", 1).replace("eval/", "eval_", 1) for name in events.Tags()["scalars"]}
    known = {metric.name for metric in (*TRAINING, *FROM_TRANSFORMERS)} | {f"eval_{one.name}" for one in HELD_OUT}
    theirs = {one.name for one in ELSEWHERE if one.library == "Axolotl" and not one.here.startswith("Not logged")}
    assert names - known == theirs
    assert {"ppl", "eval_ppl", "eval_train_gap", "pairs_per_second"} <= names


def test_weights_and_biases_gets_the_facts_too(run):
    if find_spec("wandb") is None:
        pytest.skip("needs Weights & Biases (pip install wandb)")
    settings, metrics = read_run(run)
    expected = {"mrt/selector": "best_k", "selector": "best_k", "mrt/k_of_n": "2 of 5", "mrt/layout": "shared_prefix"}
    assert {name: settings[name] for name in expected} == expected
    assert settings["mrt/data_sha256"] == sha256_of(run / "pool.jsonl")
    assert "train/pairs_per_second" in metrics


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(run):
    whole, resumed = (load_file(run / name / "adapter_model.safetensors") for name in ("out", "resumed"))
    started = load_file(run / "out" / "checkpoint-2" / "adapter_model.safetensors")
    for name, weight in whole.items():
        assert weight.equal(resumed[name]), name
    assert any(not weight.equal(started[name]) for name, weight in whole.items())
    assert row((run / "resumed" / "README.md").read_text(), "Length").startswith("4 optimizer steps")
