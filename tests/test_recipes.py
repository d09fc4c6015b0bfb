"""The recipes in `recipes/`: Axolotl's own check takes each, their values follow the rules, and the scripts run."""

import json
import logging
import os
import re
from pathlib import Path
from unittest import mock

import pytest
import yaml
from accelerate.utils import DeepSpeedPlugin, DistributedType
from helpers import axolotl_recipe, tiny
from helpers.axolotl_recipe import groups, write_rows
from helpers.processes import run_python
from transformers import AutoConfig

from mrt_plugin.trainer.processes import read_sharding

RECIPES = Path(__file__).parent.parent / "recipes"
FILES = sorted(RECIPES.glob("*.yaml"))

FAMILIES = {
    "llama": "llama",
    "qwen3": "qwen3",
    "gemma": "gemma3_text",
    "mistral": "mistral",
    "gsm8k": "llama",
}
"""By the start of a recipe's name: the model type of the local model that stands in for its base model."""

SETTINGS = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def read(path):
    return yaml.safe_load(path.read_text())


def stand_in(folder, path):
    """A local model of the recipe's family: its configuration and a tokenizer."""
    family = next(kind for start, kind in FAMILIES.items() if path.name.startswith(start))
    tokenizer = tiny.tokenizer(folder)
    AutoConfig.for_model(family, **SETTINGS, eos_token_id=tokenizer.eos_token_id, pad_token_id=1).save_pretrained(
        folder
    )
    return str(folder)


def test_all_cards_families_and_methods_are_there():
    names = " ".join(path.stem for path in FILES)
    for part in ("llama-3.2-1b", "llama-3.2-3b", "qwen3", "gemma-3", "mistral-7b", "gsm8k-qlora-cpu"):
        assert part in names
    for part in ("qlora-8gb", "qlora-12gb", "qlora-16gb", "qlora-24gb", "-lora-", "-full-"):
        assert part in names


@pytest.mark.axolotl
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_axolotl_takes_the_recipe(path, tmp_path, monkeypatch):
    pytest.importorskip("axolotl")
    logger_class = logging.getLoggerClass()
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    logging.setLoggerClass(logger_class)
    settings = read(path)
    monkeypatch.chdir(tmp_path)
    data = Path(settings["datasets"][0]["path"])
    data.parent.mkdir(parents=True)
    write_rows(data, groups(4))
    settings["base_model"] = stand_in(tmp_path / "model", path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))

    PluginManager.get_instance().plugins.clear()
    cfg = load_cfg(str(tmp_path / "recipe.yaml"))
    assert cfg.mrt.k == settings["mrt"]["k"]
    assert cfg.test_datasets, "held-out prompts"
    # Nothing in a recipe that Axolotl does not know, apart from the plugin's block: unknown keys are dropped silently.
    from axolotl.utils.schemas.config import AxolotlInputConfig

    assert set(settings) - set(AxolotlInputConfig.model_fields) == {"mrt"}


ZERO2 = RECIPES / "deepspeed-zero2.json"


@pytest.mark.axolotl
def test_axolotl_takes_deepspeed_zero2(tmp_path, monkeypatch, tiny_model_dir):
    """Its own check of a recipe, as its commands make it; what they do next imports DeepSpeed."""
    pytest.importorskip("axolotl")
    logger_class = logging.getLoggerClass()
    from axolotl.cli.config import gpu_capabilities, prepare_plugins
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    logging.setLoggerClass(logger_class)
    monkeypatch.chdir(tmp_path)
    PluginManager.get_instance().plugins.clear()
    settings = axolotl_recipe.recipe(tmp_path, tiny_model_dir, deepspeed=str(ZERO2), sample_packing=True)
    cfg = DictDefault(settings)
    prepare_plugins(cfg)
    capabilities, environment = gpu_capabilities()
    cfg = validate_config(cfg, capabilities=capabilities, env_capabilities=environment)
    assert cfg.deepspeed == str(ZERO2)
    assert cfg.mrt.k == 3


def test_accelerate_takes_deepspeed_zero2():
    """It fills in what says `auto` with the values that a Trainer gives it, before DeepSpeed itself is called."""
    with mock.patch.dict(os.environ):
        plugin = DeepSpeedPlugin(hf_ds_config=str(ZERO2))
    values = {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
        "bf16.enabled": True,
        "fp16.enabled": False,
    }
    plugin.deepspeed_config_process(must_match=False, **values)
    config = plugin.deepspeed_config
    assert "auto" not in json.dumps(config)
    assert config["train_batch_size"] == 24
    assert config["bf16"]["enabled"] is True
    assert plugin.zero_stage == 2
    assert read_sharding(DistributedType.DEEPSPEED, plugin) is None, "every process keeps all weights"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_values_follow_the_rules(path):
    recipe, text = read(path), path.read_text()
    full = "adapter" not in recipe
    if path.stem != "gsm8k-qlora-cpu":  # a model with random weights needs another learning rate
        assert recipe["learning_rate"] == (2e-5 if full else 2e-4)
        card = int(re.search(r"-(\d+)gb", path.stem)[1])
        estimate = float(re.search(r"([\d.]+) GB in all", text)[1])
        assert "NOT measured" in text
        assert estimate + 2 <= card
    if not full:
        assert recipe["lora_r"] == (16 if re.search("-[3478]b-", path.stem) else 8)
    pairs = recipe["micro_batch_size"] * recipe["gradient_accumulation_steps"] * recipe["mrt"]["k"]
    assert 16 <= pairs <= 128
    assert f"= {pairs} pairs" in text
    assert 1 <= recipe["num_epochs"] <= 3
    assert recipe["lr_scheduler"] == "cosine"
    assert recipe["warmup_ratio"] == 0.03
    assert recipe["weight_decay"] > 0
    assert recipe["mrt"].get("max_length", 0) <= recipe["sequence_len"]


def run(*arguments, folder):
    paths = os.pathsep.join(filter(None, (str(RECIPES.parent), os.environ.get("PYTHONPATH"))))
    done = run_python(arguments, cwd=folder, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.processes
def test_the_trl_script_trains_on_a_tiny_model_made_by_the_other_script(tmp_path):
    pytest.importorskip("bitsandbytes")
    data = write_rows(tmp_path / "pool.jsonl", groups(12))
    printed = run(str(RECIPES / "tiny_model.py"), "--data", data, "--output", "model", folder=tmp_path)
    assert "tokens: model" in printed
    printed = run(
        str(RECIPES / "trl_qlora.py"),
        *("--model", "model", "--data", data, "--output", "out", "--k", "3", "--max-steps", "2"),
        folder=tmp_path,
    )
    assert "'responses_per_prompt': '3'" in printed
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


THINKING = RECIPES / "thinking_chats"


def test_the_recipes_that_are_compared_differ_in_the_plugin_alone():
    before, after, whole = (read(THINKING / f"{name}.yaml") for name in ("before", "after", "conversations"))
    for other, more in ((after, set()), (whole, {"datasets", "micro_batch_size"})):
        changed = {name for name in {*before, *other} if before.get(name) != other.get(name)}
        assert changed == {"plugins", "mrt", "output_dir", *more}


@pytest.mark.axolotl
@pytest.mark.slow
@pytest.mark.processes
def test_the_plugin_changes_the_tokens_of_a_run_and_not_its_losses(tmp_path):
    """The chat set with a long system text and thinking turns, in two steps."""
    printed = run("-m", "recipes.thinking_chats.prepare", "--conversations", "4", folder=tmp_path)
    assert printed.startswith("4 conversations of 4 turns, a system text of ")
    turns = [json.loads(line)["messages"] for line in (tmp_path / "outputs/thinking_chats/turns.jsonl").open()]
    assert len(turns) == 16
    printed = run("-m", "recipes.thinking_chats.compare", folder=tmp_path)
    steps = [re.findall(r"([\d.]+) +([\d,]+) tokens", line) for line in printed.splitlines()]
    steps = [[(float(loss), int(tokens.replace(",", ""))) for loss, tokens in step] for step in steps if len(step) > 1]
    assert [len(step) for step in steps] == [3, 3]
    for (loss, tokens), *others in steps:
        for shared_loss, shared_tokens in others:
            assert shared_loss == pytest.approx(loss, rel=1e-5)
            assert tokens > 4 * shared_tokens
