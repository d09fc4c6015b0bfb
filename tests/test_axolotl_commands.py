"""Axolotl's own commands on a real QLoRA recipe with the plugin, as a user types them."""

import csv
import shlex

import pytest
import torch
import typer
from helpers import axolotl_recipe
from helpers.axolotl_runs import axolotl, logged

from mrt_plugin.cli import app
from mrt_plugin.groups import held_out, load_groups

pytest.importorskip("axolotl")
pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.axolotl


def summary(folder):
    """`eval_summary.csv` of `axolotl evaluate`: {metric: (training, validation)}."""
    with open(folder / "eval_summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["metric"]: (float(row["training"] or "nan"), float(row["validation"] or "nan")) for row in rows}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_dir):
    """A folder where a recipe was prepared by two processes, trained, evaluated and merged."""
    folder = tmp_path_factory.mktemp("axolotl")
    settings = axolotl_recipe.recipe(
        folder,
        tiny_model_dir,
        val_set_size=0.3,
        chat_template="tokenizer_default",
        evals_per_epoch=2,
        saves_per_epoch=1,
        num_epochs=2,
    )
    recipe = axolotl_recipe.write(folder, settings)
    printed = {
        "preprocess": axolotl("preprocess", recipe, folder=folder, AXOLOTL_DATASET_NUM_PROC="2"),
        "train": axolotl("train", recipe, "--launcher", "python", folder=folder),
        "evaluate": axolotl(
            "evaluate", recipe, "--launcher", "python", "--lora-model-dir", str(folder / "out"), folder=folder
        ),
        "merge": axolotl("merge-lora", recipe, folder=folder),
    }
    return folder, settings, printed


def test_training_uses_what_preprocess_made(run):
    _, _, printed = run
    assert printed["preprocess"].count("Unable to find prepared dataset") == 2
    assert printed["train"].count("Loading prepared dataset from disk") == 2
    assert "Unable to find" not in printed["train"]


def test_training_learns_and_says_what_it_does(run):
    _, _, printed = run
    losses = logged(printed["train"], "eval_loss")
    assert losses[-1] < losses[0] - 0.1
    assert "Layout shared_prefix" in printed["train"]
    assert set(logged(printed["train"], "responses_per_prompt")) == {3.0}
    assert min(logged(printed["train"], "pairs_per_second")) > 0
    assert "gemv_4bit" not in printed["train"], "training after an evaluation would lose gradients"


def test_training_ends_with_a_command_that_can_be_pasted(run):
    """Its data are the held-out prompts, with all their responses, which the run has written."""
    folder, settings, printed = run
    program, name, *arguments = shlex.split(printed["train"].rpartition("Next: ")[2].splitlines()[0])
    assert (program, name) == ("mrt", "evaluate")
    given = typer.main.get_command(app).commands[name].make_context(name, list(arguments)).params
    assert given["model"] == [settings["base_model"], f"{settings['base_model']}+{folder / 'out'}"]
    assert given["load_in_4bit"] is True
    aside, pool = load_groups(given["data"]), load_groups(str(folder / "pool.jsonl"))
    assert 0 < len(aside) < len(pool)
    assert sum(map(len, aside["responses"])) == 5 * len(aside)
    sides = [held_out(prompt, 0.3, settings["seed"]) for prompt in pool["prompt"]]
    assert set(aside["prompt"]) == {prompt for prompt, side in zip(pool["prompt"], sides, strict=True) if side}


def test_evaluate_measures_the_same_held_out_prompts(run):
    folder, _, printed = run
    found = summary(folder / "out")
    assert found["loss"][1] == pytest.approx(logged(printed["train"], "eval_loss")[-1], abs=2e-3)  # logs have 4 digits
    assert found["tokens"][1] == logged(printed["train"], "eval_tokens")[-1]


def test_the_merged_model_is_the_adapter(run):
    folder, settings, printed = run
    assert "14 linear layers have their 4-bit values" in printed["merge"]
    merged = {key: value for key, value in settings.items() if not key.startswith(("lora", "adapter", "load_in"))}
    merged |= {"base_model": str(folder / "out" / "merged"), "output_dir": str(folder / "merged_out")}
    axolotl("evaluate", axolotl_recipe.write(folder, merged, "merged.yaml"), "--launcher", "python", folder=folder)
    adapter, whole = summary(folder / "out"), summary(folder / "merged_out")
    # The same 4-bit values plus the adapter, added once instead of at every step: round-off in fp32 is all there is.
    assert whole["loss"] == pytest.approx(adapter["loss"], abs=1e-5)
    assert whole["tokens"] == adapter["tokens"]


def test_inference_answers_in_the_format_of_training(run):
    folder, _, _ = run
    # On a CPU without bf16 Axolotl's inference casts 4-bit weights to fp32, which breaks them: 16-bit weights instead.
    printed = axolotl(
        "inference",
        str(folder / "recipe.yaml"),
        *("--launcher", "python", "--lora-model-dir", str(folder / "out")),
        *("--adapter", "lora", "--no-load-in-4bit"),
        folder=folder,
        text="Write a sentence about the sea",
    )
    assert "<|im_start|>user\nWrite a sentence about the sea<|im_end|>\n<|im_start|>assistant" in printed
    assert "does not format your text" not in printed


def test_sample_packing(run, tiny_model_dir):
    folder, settings, printed = run
    packed = {**settings, "sample_packing": True, "output_dir": str(folder / "packed"), "micro_batch_size": 1}
    text = axolotl("train", axolotl_recipe.write(folder, packed, "packed.yaml"), "--launcher", "python", folder=folder)
    before, after = logged(text, "eval_loss")[0], logged(text, "eval_loss")[-1]
    # The untrained model, on the same held-out tokens, whatever the rows.
    assert before == pytest.approx(logged(printed["train"], "eval_loss")[0], abs=2e-3)
    assert set(logged(text, "eval_tokens")) == set(logged(printed["train"], "eval_tokens"))
    assert after < before


@pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available(),
    reason="Axolotl asks CUDA which processes reach each other, and torch's CUDA build raises without a driver",
)
def test_two_processes(run, tiny_model_dir):
    folder, settings, printed = run
    twice = {
        **settings,
        "output_dir": str(folder / "two"),
        "gradient_accumulation_steps": 1,
        "max_memory": {"cpu": "8GiB"},
    }
    text = axolotl(
        *(
            "train",
            axolotl_recipe.write(folder, twice, "two.yaml"),
            "--launcher",
            "torchrun",
            "--",
            "--nproc_per_node=2",
        ),
        folder=folder,
        ACCELERATE_USE_CPU="true",
    )
    losses = logged(text, "eval_loss")
    # Fillers that even the batches out count nowhere.
    assert losses[0] == pytest.approx(logged(printed["train"], "eval_loss")[0], abs=2e-3)
    assert set(logged(text, "eval_tokens")) == set(logged(printed["train"], "eval_tokens"))
    assert losses[-1] == pytest.approx(logged(printed["train"], "eval_loss")[-1], abs=0.15)
