"""The model card of a run: what it states is true of the run, and its metadata are what the hub takes."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from helpers import hub_server, tiny
from helpers.cli import CliRunner
from helpers.training import SHORT, config, make_groups
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from peft import LoraConfig
from transformers import Trainer, TrainingArguments

from mrt_plugin import (
    GroupedResponseCollator,
    MultiResponseOptions,
    MultiResponseSFTConfig,
    MultiResponseSFTTrainer,
    MultiResponseTrainerMixin,
    load_groups,
    prepare_groups,
)
from mrt_plugin.cli import app
from mrt_plugin.groups.write import content_sha256, sha256_of, write_groups
from mrt_plugin.pipeline import PoolFile, SelectJob, select_file
from mrt_plugin.trainer.card import PAPERS, CardError, add_to_card, hub_id
from mrt_plugin.trainer.run_facts import LoggedArguments
from mrt_plugin.trainer.sft import changed_settings


def build(tmp_path, groups, lora=True, **settings) -> MultiResponseSFTTrainer:
    return MultiResponseSFTTrainer(
        model=tiny.model_dir(tmp_path / "model"),
        args=config(tmp_path, **settings),
        train_dataset=groups,
        eval_dataset=SHORT,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )


def card_of(folder) -> ModelCard:
    """The card in a folder, whose metadata are checked as far as that is possible without the hub."""
    text = (Path(folder) / "README.md").read_text()
    card = ModelCard(text)
    data = yaml.safe_load(text.split("---\n")[1])
    assert data == card.data.to_dict()
    for name in (data.get("base_model"), *(data.get("datasets") or [])):
        if name is not None:
            validate_repo_id(name)
            assert not Path(name).exists()
    assert {"mrt", "multi-response"} <= set(data["tags"])
    assert "licence" not in data
    assert not re.search(r"\[None\]|\"None\"|`None`", card.text)
    return card


def row(card: ModelCard, name: str) -> str:
    [found] = re.findall(rf"^\|{re.escape(name)}\|(.*)\|$", card.text, re.MULTILINE)
    return found


def test_a_run_on_a_selected_file_states_how_it_was_selected(tmp_path, monkeypatch):
    """The pool, the counts of the ledger, the seed and the command are those of `mrt select`."""
    monkeypatch.chdir(tmp_path)
    repeating = make_groups(12, 5).map(lambda row: {"responses": [*row["responses"], row["responses"][0]]})
    write_groups(repeating, Path("pool.jsonl"))
    chosen = select_file(
        SelectJob(
            "diverse_k",
            k=3,
            pools=[PoolFile("pool.jsonl")],
            output=Path("chosen.jsonl"),
            seed=11,
            held_out=0.25,
            held_out_threshold=1.0,
            curation=["duplicate_responses"],
        )
    )
    trainer = build(tmp_path, load_groups("chosen.jsonl"), selector="all", max_steps=1)
    trainer.train()
    trainer.save_model()
    card = card_of(tmp_path / "out")
    last = chosen.ledger.entries[-1]
    mean = last.responses_in / last.groups_in
    kept = f"**3 of {mean:.4g} on average** per prompt, by `diverse_k`, seed 11"
    assert row(card, "Responses kept, K of N") == kept
    assert row(card, "Pool") == f"pool.jsonl, SHA-256 `{sha256_of('pool.jsonl')}`"
    assert row(card, "Data") == f"chosen.jsonl, SHA-256 `{sha256_of('chosen.jsonl')}`"
    assert content_sha256(load_groups("chosen.jsonl")) in row(card, "Groups read")
    for entry in chosen.ledger.entries:
        counts = (entry.groups_in, entry.responses_in, entry.groups_out, entry.responses_out)
        assert f"|{entry.rule}|{'|'.join(map(str, counts))}|" in card.text
    assert {entry.rule for entry in chosen.ledger.entries} > {"duplicate_responses", "held out", "selection"}
    assert last.responses_in < chosen.ledger.first.responses_in, "curation and the held-out part took some away"
    # the command writes the file again
    [command] = re.findall(r"^mrt (select .*)$", card.text, re.MULTILINE)
    before = Path("chosen.jsonl").read_bytes()
    Path("chosen.jsonl").unlink()
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    assert Path("chosen.jsonl").read_bytes() == before


def test_a_changed_file_is_not_described_by_its_old_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_groups(make_groups(12, 5), Path("pool.jsonl"))
    select_file(
        SelectJob("best_k" if False else "random_k", k=3, pools=[PoolFile("pool.jsonl")], output=Path("c.jsonl"))
    )
    Path("c.jsonl").write_text("".join(Path("c.jsonl").read_text().splitlines(keepends=True)[:-1]))
    trainer = build(tmp_path, load_groups("c.jsonl"), selector="random_k", k=2)
    card_text = written(trainer)
    assert "|Pool|" not in card_text
    assert "|Curation|none in the run; before it, not known to this run|" in card_text


def written(trainer) -> str:
    trainer.create_model_card(model_name="x")
    return (Path(trainer.args.output_dir) / "README.md").read_text()


def test_a_run_that_selects_itself(tmp_path):
    write_groups(make_groups(8, 4, weights=True), tmp_path / "pool.jsonl")
    groups = load_groups(tmp_path / "pool.jsonl").shuffle(seed=1).select(range(7))
    trainer = build(
        tmp_path, groups, lora=False, selector="random_k", k=2, seed=9, save_strategy="steps", save_steps=1
    )
    trainer.train()
    card = card_of(tmp_path / "out")
    assert card.data.library_name == "transformers"
    assert row(card, "Responses kept, K of N") == "**2 of 4** per prompt, by `random_k`, seed 9"
    assert row(card, "Trained on") == "7 prompts with 14 responses"
    assert row(card, "Groups read").startswith("7 prompts with 28 responses")
    assert row(card, "Held out") == "8 prompts"
    assert row(card, "Objective") == "`nll`; every token has one vote"
    assert row(card, "Layout").startswith("`shared_prefix`, backend `sdpa`: the token ratio is ")
    assert row(card, "Length") == "2 optimizer steps, epoch 1, 1 process"
    assert str(tmp_path) not in card.text, "no path of this machine is published"
    assert card.text.index("## Quick start") < card.text.index("## Multi-response training")
    assert card.text.index("## Multi-response training") < card.text.index("## Training procedure")
    # the settings on the card are those of the run
    [settings] = re.findall(r"```python\n(MultiResponseSFTConfig\(.*?\n\))\n```", card.text, re.DOTALL)
    again = eval(settings, {"MultiResponseSFTConfig": lambda **given: given})
    assert again == changed_settings(trainer.args)
    assert {name: again[name] for name in ("k", "seed", "learning_rate")} == {"k": 2, "seed": 9, "learning_rate": 1e-3}
    remade = MultiResponseSFTConfig(output_dir=str(tmp_path / "out"), report_to="none", **again)
    assert changed_settings(remade) == again


def test_an_expanded_layout_has_its_reason(tmp_path):
    text = written(build(tmp_path, make_groups(8, 4), selector="random_k", k=2, layout="expanded", objective="gem"))
    assert re.search(r"^\|Layout\|`expanded`, backend `\w+`: as requested\|$", text, re.MULTILINE)
    assert "computed once" not in text
    assert "2408.16673" in text


@pytest.mark.parametrize("objective", ["nll", "dft", "pro", "plackett_luce"])
def test_the_papers_are_those_of_the_objective(tmp_path, objective):
    groups = make_groups(8, 4).map(lambda row: {"scores": [1.0, 0.5, 0.25, 0.0]})
    text = written(build(tmp_path, groups, objective=objective, prefix_check=False))
    found = set(re.findall(r"arxiv.org/abs/([\d.]+)\)$", text, re.MULTILINE))
    expected = {
        "nll": set(),
        "dft": {"2508.05629"},
        "pro": {"2403.11124", "2306.17492"},
        "plackett_luce": {"2403.11124", "2305.18290"},
    }
    assert found == {"2606.00544"} | expected[objective]
    assert found <= set(PAPERS)


def test_save_model_writes_the_card_of_the_output_folder_alone(tmp_path):
    trainer = build(tmp_path, make_groups(8, 3), max_steps=1)
    trainer.train()
    assert not (tmp_path / "out" / "README.md").exists()
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert not (tmp_path / "out" / "README.md").exists()
    trainer.save_model()
    card = card_of(tmp_path / "out")
    assert card.data.library_name == "peft"
    assert row(card, "Trained") == "LORA adapter"
    assert not list((tmp_path / "out").glob(".*partial"))


@dataclass
class Arguments(LoggedArguments, TrainingArguments):
    """Arguments that are logged with the run's facts."""


def test_a_trainer_of_ones_own_has_the_section_too(tmp_path):
    """transformers' own card, from a `Trainer` with the mixin, whose arguments are logged with the facts."""

    class GroupTrainer(MultiResponseTrainerMixin, Trainer):
        def __init__(self, options, report, **kwargs):
            super().__init__(**kwargs)
            self.set_up_groups(options, [self.data_collator])
            self.know_data([report.data])

    tokenizer, options = tiny.tokenizer(), MultiResponseOptions(selector="random_k", k=2, prefix_check=False)
    rows, report = prepare_groups(load_groups(make_groups(6, 4)), tokenizer, options, max_length=512, seed=3)
    trainer = GroupTrainer(
        options,
        report,
        model=tiny.llama(),
        args=Arguments(str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none"),
        data_collator=GroupedResponseCollator(tokenizer),
        train_dataset=rows,
    )
    trainer.train()
    (tmp_path / "out").mkdir(exist_ok=True)
    trainer.create_model_card(model_name="own")
    card = card_of(tmp_path / "out")
    assert "# own" in card.text
    assert "## Intended uses & limitations" in card.text
    assert row(card, "Responses kept, K of N") == "**2 of 4** per prompt, by `random_k`, seed 3"
    assert trainer.args.to_dict()["mrt/k_of_n"] == "2 of 4"


def test_a_name_on_the_hub_is_metadata_and_a_path_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pool").touch()
    assert hub_id("org/model") == "org/model"
    for name in (None, "data/pool", "data/missing.jsonl", "/a/b", "./a", "a/b/c"):
        assert hub_id(name) is None


def test_push_to_hub_uploads_the_card(tmp_path):
    """To a server that speaks the hub's protocol. Checkpoints stay here, the token is not in the card."""
    with hub_server.serve() as hub:
        script = Path(__file__).parent / "helpers" / "pushed_run.py"
        env = {**os.environ, **hub.environment}
        env["PYTHONPATH"] = os.pathsep.join([str(script.parent.parent), *filter(None, [env.get("PYTHONPATH")])])
        done = subprocess.run([sys.executable, script, tmp_path], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        files = hub.repositories["someone/run"]
        assert hub.cards, "the hub was asked to check the metadata"
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(files)
    assert not any(name.startswith("checkpoint") for name in files)
    (tmp_path / "pushed").mkdir()
    (tmp_path / "pushed" / "README.md").write_bytes(files["README.md"])
    card = card_of(tmp_path / "pushed")
    assert row(card, "Responses kept, K of N") == "**2 of 4** per prompt, by `random_k`, seed 42"
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["someone/pool"])
    assert "hf_notatoken" not in card.content


# ---------------------------------------------------------------- mrt card


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A finished run, and what `mrt evaluate --json` says of it and its base."""
    folder = tmp_path_factory.mktemp("evaluated")
    trainer = build(folder, make_groups(8, 4), selector="random_k", k=2, num_train_epochs=6, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    write_groups(make_groups(6, 4, first=20), folder / "held_out.jsonl")
    base, tuned = str(folder / "model"), f"{folder / 'model'}+{folder / 'out'}"
    options = ["--data", str(folder / "held_out.jsonl"), "--m", "0", "--no-probe", "--json"]
    done = CliRunner().invoke(app, ["evaluate", "--model", f"base={base}", "--model", f"tuned={tuned}", *options])
    assert done.exit_code == 0, done.output
    (folder / "result.json").write_text(done.stdout)
    return folder, trainer


def run(*arguments) -> object:
    return CliRunner().invoke(app, ["card", *map(str, arguments)])


def test_mrt_card_adds_an_evaluation_and_a_license(evaluated):
    folder, trainer = evaluated
    bare = run(folder / "out")
    assert bare.exit_code == 0
    assert "It has no license (--license NAME)." in bare.stdout
    assert "It has no evaluation" in bare.stdout
    done = run(folder / "out", "--evaluation", folder / "result.json", "--license", "apache-2.0")
    assert done.exit_code == 0, done.output
    assert "It has no license" not in done.stdout
    assert "It has no evaluation" not in done.stdout
    assert "It has no base model's name on the hub" in done.stdout
    why, line = done.stdout.splitlines()[-1].split(" as out: ")
    assert why == "Next: read it, then publish it under your name"
    card = card_of(folder / "out")
    (folder / "out" / "checkpoint-1").mkdir()
    (folder / "out" / "checkpoint-1" / "optimizer.pt").touch()
    with hub_server.serve() as hub:
        program, *arguments = shlex.split(line)
        command = [str(Path(sys.executable).with_name(program)), *arguments]
        uploaded = subprocess.run(command, env={**os.environ, **hub.environment}, capture_output=True, text=True)
        assert uploaded.returncode == 0, uploaded.stderr
        files = hub.repositories["someone/out"]
    assert files["README.md"].decode() == card.content
    assert "adapter_model.safetensors" in files
    assert not any(name.startswith("checkpoint") for name in files)
    assert card.data.license == "apache-2.0"
    result = json.loads((folder / "result.json").read_text())
    [nll] = [r["value"] for r in result["models"][1]["measures"] if r["measure"] == "nll_per_token"]
    line, difference = (line for line in card.text.splitlines() if line.startswith("|held-out NLL per token, nats|"))
    assert difference.split("|")[2].startswith("-"), "the tuned model is better"
    assert float(line.split("|")[3].split()[0]) == pytest.approx(nll, rel=1e-2)
    assert card.text.count("## Evaluation") == 1
    assert run(folder / "out", "--evaluation", folder / "result.json").exit_code == 0
    assert card_of(folder / "out").text.count("## Evaluation") == 1
    # The same weights keep it, other weights lose it.
    trainer.save_model()
    assert "## Evaluation" in card_of(folder / "out").text
    trainer.state.global_step += 1
    trainer.save_model()
    assert "## Evaluation" not in card_of(folder / "out").text


def test_mrt_card_refuses_what_is_not_of_the_run(evaluated, tmp_path):
    folder, _ = evaluated
    done = run(tmp_path, "--license", "mit")
    assert done.exit_code == 1
    assert "has no README.md" in done.stderr
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(CardError, match="is not the card of a run"):
        add_to_card(tmp_path, license="mit")
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    other = run(tmp_path, "--evaluation", folder / "result.json")
    assert "has no model of" in other.stderr
    assert "--model NAME" in other.stderr
    wrong = run(folder / "out", "--evaluation", folder / "held_out.jsonl")
    assert wrong.exit_code == 1
    assert "is not a result of `mrt evaluate --json`" in wrong.stderr
    idle = run(folder / "out", "--model", "tuned")
    assert "--model tuned changes nothing here: it needs --evaluation" in idle.stderr
    missing = run(folder / "nowhere")
    assert "there is no folder" in missing.stderr
