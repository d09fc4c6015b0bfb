"""`mrt init`: a recipe and a script that start as they are, with values that follow from data, model and card."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from helpers.cli import CliRunner
from transformers import Qwen3Config

from mrt_plugin import load_groups
from mrt_plugin.cli import app
from mrt_plugin.demo.run import DemoSettings
from mrt_plugin.doctor.memory import Method, estimate_memory
from mrt_plugin.init.choose import FREE, Card, choose, parse_card
from mrt_plugin.init.look import DataFacts, look_at
from mrt_plugin.init.run import build_tiny_model, write_recipe

BIG = Qwen3Config(  # the sizes of Qwen3 4B
    vocab_size=151_936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40_960,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    rows = [
        {"prompt": f"Name a number near {n}.", "responses": [f"{n + d} is near {n}." for d in range(1, 5)]}
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_model(str(pool), tmp_path_factory.mktemp("tiny") / "model"))


def facts(**changes: Any) -> DataFacts:
    random = np.random.default_rng(0)
    found = DataFacts(
        groups=2_000,
        responses=16_000,
        smallest=8,
        middle=8,
        largest=8,
        repeated=0,
        scored=False,
        prompts=np.full(2_000, 500),
        pairs=500 + random.integers(50, 400, 16_000),
        answers=np.full(2_000, 225.0),
        notes=(),
    )
    return replace(found, **changes)


class TestChoice:
    @pytest.mark.parametrize("memory", [8, 12, 16, 24, 80])
    def test_fits_the_card_by_the_estimate(self, memory: int) -> None:
        chosen = choose(facts(), BIG, Card(f"{memory} GB", memory))
        bits = 4 if chosen.load_in_4bit.value else None
        rows, length = int(chosen.micro_batch.value), int(chosen.row_length.value)
        assert estimate_memory(BIG, Method(bits, 16), rows=rows, length=length).total <= FREE * memory

    def test_takes_four_bits_only_where_sixteen_do_not_fit(self) -> None:
        assert choose(facts(), BIG, Card("8 GB", 8)).load_in_4bit.value is True
        assert choose(facts(), BIG, Card("80 GB", 80)).load_in_4bit.value is False

    def test_refuses_a_card_on_which_nothing_fits(self) -> None:
        with pytest.raises(ValueError, match="2 GB leaves 1.7: choose a smaller model, a larger card"):
            choose(facts(), BIG, Card("2 GB", 2))

    def test_one_step_has_eight_prompts_whatever_fits(self) -> None:
        for memory in (8, 24, 80):
            chosen = choose(facts(), BIG, Card("", memory))
            assert int(chosen.micro_batch.value) * int(chosen.accumulation.value) == 8

    def test_drops_only_outliers_and_says_how_many(self) -> None:
        ordinary = choose(facts(), BIG, Card("CPU", None))
        assert int(ordinary.max_length.value) >= 899
        assert "nothing is dropped" in ordinary.max_length.reason
        pairs = np.concatenate([np.full(15_900, 600), np.full(100, 9_000)])
        chosen = choose(facts(pairs=pairs), BIG, Card("CPU", None))
        assert chosen.max_length.value == 640
        assert chosen.max_length.reason == "drops 0.6 % of the pairs, which are longer (up to 9,000 tokens)"

    def test_never_goes_above_the_positions_of_the_model(self) -> None:
        config = Qwen3Config(**{**BIG.to_dict(), "max_position_embeddings": 700})
        assert choose(facts(), config, Card("CPU", None)).max_length.value == 700

    def test_a_row_holds_a_prompt_with_its_k_responses(self) -> None:
        chosen = choose(facts(), BIG, Card("", 80))
        assert chosen.row_length.value == 1536  # 500 + 4 * 226 = 1,404, up to a multiple of 256

    def test_one_response_per_prompt_keeps_all(self) -> None:
        chosen = choose(facts(smallest=1, middle=1, largest=1), BIG, Card("CPU", None))
        assert (chosen.selector.value, chosen.k.value) == ("all", 1)
        assert "mrt sample" in chosen.selector.reason

    def test_holds_out_nothing_of_a_few_prompts(self) -> None:
        assert choose(facts(groups=39), BIG, Card("CPU", None)).held_out.value == 0
        assert choose(facts(groups=100), BIG, Card("CPU", None)).held_out.value == 0.2
        assert choose(facts(groups=100_000), BIG, Card("CPU", None)).held_out.value == 0.005

    def test_a_tiny_model_has_the_rate_and_the_epochs_of_the_demo(self) -> None:
        tiny = Qwen3Config(vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
        few, many = facts(groups=20), facts(groups=5_000)
        chosen, usual = (choose(few, config, Card("CPU", None)) for config in (tiny, BIG))
        assert (chosen.learning_rate.value, chosen.epochs.value) == (0.002, DemoSettings().epochs)
        assert choose(many, tiny, Card("CPU", None)).epochs.value == 2
        assert (usual.learning_rate.value, usual.epochs.value) == (0.0002, 2)

    @pytest.mark.parametrize(
        ("text", "memory"), [("12gb", 12), ("24 GB", 24), ("8", 8), ("7.5GiB", 7.5), ("CPU", None)]
    )
    def test_reads_a_card(self, text: str, memory: float | None) -> None:
        assert parse_card(text).memory_gib == memory

    @pytest.mark.parametrize("text", ["rtx4090", "0gb", "-3", ""])
    def test_refuses_what_is_no_card(self, text: str) -> None:
        with pytest.raises(ValueError, match="is no card: give its memory, such as 12gb, or cpu"):
            parse_card(text)


class TestFacts:
    def test_counts_what_is_there(self, pool: Path, model: str) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        found = look_at(str(pool), tokenizer)
        assert (found.groups, found.responses, found.smallest, found.largest) == (60, 240, 4, 4)
        assert not found.scored
        text = tokenizer.apply_chat_template(
            [
                {"role": "user", "content": "Name a number near 0."},
                {"role": "assistant", "content": "1 is near 0."},
            ],
            tokenize=False,
        )
        assert found.pairs[0] == len(tokenizer(text)["input_ids"])


class TestFiles:
    @pytest.mark.axolotl
    @pytest.mark.slow
    def test_the_recipe_passes_the_doctor(self, pool: Path, model: str, tmp_path: Path) -> None:
        from mrt_plugin.doctor.recipe import inspect_recipe

        for card in ("cpu", "8gb"):
            recipe = tmp_path / f"{card}.yaml"
            write_recipe(model, str(pool), recipe, gpu=card)
            report = inspect_recipe(recipe)
            assert report.problems == []
            assert report.layout == "shared_prefix"

    @pytest.mark.axolotl
    @pytest.mark.processes
    @pytest.mark.slow
    def test_the_recipe_trains_as_it_is(self, pool: Path, model: str, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        write_recipe(model, str(pool), recipe, gpu="cpu")
        command = [sys.executable, "-m", "axolotl.cli.main", "train", str(recipe), "--launcher", "python"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (tmp_path / "outputs/recipe/adapter_model.safetensors").is_file(), done.stderr[-3000:]

    @pytest.mark.processes
    @pytest.mark.slow
    def test_the_script_trains_as_it_is(
        self, pool: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_recipe(model, str(pool), tmp_path / "train.py", gpu="cpu", trl=True)
        done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True)
        assert (tmp_path / "outputs/train/adapter_model.safetensors").is_file(), done.stderr[-3000:]
        following = shlex.split(done.stdout.splitlines()[-1])
        assert following[:3] == ["Next:", "mrt", "evaluate"]
        evaluate = typer.main.get_command(app).commands["evaluate"]  # type: ignore[attr-defined]
        monkeypatch.chdir(tmp_path)
        given = evaluate.make_context("evaluate", following[3:]).params
        assert given["model"] == [model, f"{model}+outputs/train"]
        assert len(load_groups(given["data"])) > 10

    def test_both_forms_have_the_same_values(self, pool: Path, model: str, tmp_path: Path) -> None:
        for form, name in ((False, "recipe.yaml"), (True, "train.py")):
            write_recipe(model, str(pool), tmp_path / name, gpu="8gb", trl=form)
        recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
        script = (tmp_path / "train.py").read_text()
        compile(script, "train.py", "exec")
        for name, value in (
            ("k", recipe["mrt"]["k"]),
            ("max_length", recipe["mrt"]["max_length"]),
            ("row_length", recipe["sequence_len"]),
            ("per_device_train_batch_size", recipe["micro_batch_size"]),
            ("gradient_accumulation_steps", recipe["gradient_accumulation_steps"]),
            ("learning_rate", recipe["learning_rate"]),
            ("gradient_checkpointing", recipe["gradient_checkpointing"]),
        ):
            assert f"        {name}={value}," in script

    def test_four_bits_are_in_both_forms(self, pool: Path, tmp_path: Path) -> None:
        from mrt_plugin.init.write import Request, axolotl_recipe, trl_script

        chosen = choose(facts(), BIG, Card("8 GB", 8))
        asked = Request("some/model", "a: b.jsonl", "nectar", Card("8 GB", 8), Path("r.yaml"))
        recipe = yaml.safe_load(axolotl_recipe(asked, chosen))
        assert (recipe["load_in_4bit"], recipe["adapter"]) == (True, "qlora")
        assert recipe["datasets"][0]["path"] == "a: b.jsonl"
        assert recipe["mrt"]["source"] == "nectar"
        script = trl_script(asked, chosen)
        compile(script, "train.py", "exec")
        assert "load_in_4bit=True" in script
        assert 'load_groups("a: b.jsonl", source="nectar")' in script


class TestCommand:
    def test_asks_for_what_is_missing(self, pool: Path, model: str, tmp_path: Path) -> None:
        output = tmp_path / "asked.yaml"
        result = CliRunner().invoke(app, ["init"], input=f"{pool}\n{model}\ncpu\n{output}\n")
        assert result.exit_code == 0, result.output
        assert f"Next: mrt doctor {output}" in result.output
        assert yaml.safe_load(output.read_text())["base_model"] == model

    def test_builds_a_tiny_model_on_request(self, pool: Path, tmp_path: Path) -> None:
        output = tmp_path / "try.yaml"
        result = CliRunner().invoke(
            app, ["init", "--tiny", "--data", str(pool), "--gpu", "cpu", "--output", str(output), "--yes", "--json"]
        )
        assert json.loads(result.stdout)["data"]["groups"] == 60
        assert (tmp_path / "tiny_model" / "model.safetensors").is_file()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--yes"], "--yes asks nothing: give --data."),
            (["--yes", "--data", "POOL"], "--yes asks nothing: give --model, or --tiny."),
            (["--tiny", "--model", "MODEL"], "give one of them"),
            (["--yes", "--data", "POOL", "--model", "MODEL", "--gpu", "big"], "is no card"),
            (["--yes", "--data", "POOL", "--model", "MODEL", "--output", "POOL"], "exists: choose another"),
            (["--yes", "--data", "nothing.jsonl", "--tiny"], "there is no such file"),
            (["--demo", "--data", "POOL"], "--demo brings its own model and data"),
            (["--demo", "--tiny"], "leave out --model, --tiny and --data"),
            (["--demo", "--gpu", "cpu", "--output", "POOL"], "choose an --output in another folder"),
        ],
    )
    def test_refusals(self, arguments: list[str], message: str, pool: Path, model: str) -> None:
        places = {"POOL": str(pool), "MODEL": model}
        result = CliRunner().invoke(app, ["init", *(places.get(word, word) for word in arguments)])
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())
