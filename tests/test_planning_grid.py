"""`mrt grid`: settings at equal prompts, pairs and cost, recipes that train them, and what their results say."""

import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import axolotl_recipe, tiny
from helpers.cli import CliRunner
from helpers.training import config, make_groups

from mrt_plugin import MultiResponseSFTTrainer, load_groups
from mrt_plugin.cli import app
from mrt_plugin.curation import curate, parse_rules
from mrt_plugin.encoding import Encoder
from mrt_plugin.planning.budget import Costs
from mrt_plugin.planning.fit import Run, last_held_out_loss, weigh_results
from mrt_plugin.planning.grid import make_grid
from mrt_plugin.planning.measure import token_costs


def mrt(*arguments, status=0):
    done = CliRunner().invoke(app, ["grid", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return done


def by_arm(settings, arm):
    return {row["k"] if isinstance(row, dict) else row.k: row for row in settings if _arm(row) == arm}


def _arm(row):
    return row["arm"] if isinstance(row, dict) else row.arm


@pytest.mark.parametrize("layout", ["shared_prefix", "expanded"])
def test_each_arm_holds_what_it_says(layout):
    sizes, costs = [8] * 200 + [3] * 100, Costs(40, 10, layout)
    grid = make_grid(sizes, costs, ks=(1, 2, 4, 8), budget=9000)
    assert {row.prompts for row in by_arm(grid.settings, "equal prompts").values()} == {300}
    for k, row in by_arm(grid.settings, "equal pairs").items():
        kept = np.minimum(sizes, k).mean()
        assert row.pairs == pytest.approx(300, abs=kept / 2)
        assert row.pairs == pytest.approx(row.prompts * kept)
    for k, row in by_arm(grid.settings, "equal cost").items():
        one = costs.of_prompt(np.minimum(sizes, k).mean())
        assert row.cost <= 9000 < row.cost + one
        assert row.cost == pytest.approx(row.prompts * one)
    assert not grid.left_out


def test_what_cannot_be_had_is_left_out_in_words():
    grid = make_grid([4] * 100, Costs(4, 1), ks=(1, 2, 3, 4, 8), budget=700, pairs=150)
    assert [(row.arm, row.k, row.prompts) for row in grid.settings if row.arm != "equal prompts"] == [
        ("equal pairs", 2, 75),
        ("equal pairs", 3, 50),
        ("equal pairs", 4, 38),
        ("equal cost", 3, 100),
        ("equal cost", 4, 87),
    ]
    assert "K = 8: no pool has more than 4 responses." in grid.left_out
    assert "equal pairs, K = 1: it takes 150 prompts, and there are 100." in grid.left_out
    assert "equal cost, K = 1: all 100 prompts cost 500, less than the 700 to be spent." in grid.left_out
    with pytest.raises(ValueError, match="equal cost has fewer than two settings"):
        make_grid([4] * 100, Costs(4, 1), ks=(1, 2), budget=1000)
    with pytest.raises(ValueError, match="does not pay for one prompt"):
        make_grid([4] * 100, Costs(4, 1), budget=3)


def test_token_costs_are_those_of_the_layout():
    tokenizer = tiny.tokenizer()
    groups = load_groups(make_groups(6, 3))
    encoder = Encoder(tokenizer)
    encoded = [encoder.encode_group(group["prompt"], group["responses"]) for group in groups]  # type: ignore[index]
    costs = token_costs(encoded, "shared_prefix")
    whole = sum(len(pair.input_ids) for pairs in encoded for pair in pairs)
    # Copied for each response, a pair is the shared prefix and its segment.
    assert 18 * (costs.prompt + costs.response) == pytest.approx(whole)


@pytest.fixture
def recipe(tmp_path, tiny_model_dir):
    """A recipe with held-out prompts."""
    settings = axolotl_recipe.recipe(tmp_path, tiny_model_dir, val_set_size=0.3, evals_per_epoch=1)
    return tmp_path, axolotl_recipe.write(tmp_path, settings)


def test_recipes_train_the_prompts_of_the_grid(recipe):
    folder, base = recipe
    found = json.loads(
        mrt("--recipe", base, "--output", folder / "grid", "--k", "1,2,4", "--repeats", 2, "--json").stdout
    )
    assert {row["arm"] for row in found["settings"]} == {"equal prompts", "equal pairs", "equal cost"}
    lines = [json.loads(line) for line in (folder / "grid" / "runs.jsonl").read_text().splitlines()]
    assert lines == found["runs"]
    assert len(lines) == 2 * len(found["settings"])
    original = yaml.safe_load(Path(base).read_text())
    groups, kept = load_groups(folder / "pool.jsonl"), {}
    for line in lines:
        made = yaml.safe_load((folder / "grid" / line["recipe"]).read_text())
        assert made.pop("output_dir") == f"{original['output_dir']}/{line['recipe'].removesuffix('.yaml')}"
        block = made.pop("mrt")
        assert (block["k"], block["selection_seed"]) == (line["k"], line["repeat"])
        assert made == {key: value for key, value in original.items() if key not in ("output_dir", "mrt")}
        curated = curate(groups, parse_rules(block["curation"]), seed=made["seed"]).groups
        assert len(curated) == line["prompts"]
        kept[line["prompts"]] = set(curated["id"])
    nested = [kept[count] for count in sorted(kept)]
    assert all(small <= large for small, large in itertools.pairwise(nested))
    # With every prompt and one response the three arms start from one run.
    assert len({line["recipe"] for line in lines if line["k"] == 1 and line["repeat"] == 0}) == 1
    mrt("--recipe", base, "--output", folder / "grid", status=1)  # would overwrite results


@pytest.mark.axolotl
def test_axolotl_trains_as_many_prompts_as_the_grid_says(recipe, monkeypatch):
    pytest.importorskip("axolotl")
    logger_class = logging.getLoggerClass()
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager

    logging.setLoggerClass(logger_class)
    folder, base = recipe
    monkeypatch.chdir(folder)
    found = json.loads(mrt("--recipe", base, "--output", folder / "grid", "--k", "1,3", "--json").stdout)
    assert 5 < found["prompts_owned"] < 20
    plugins = PluginManager.get_instance().plugins
    for name in {line["recipe"]: None for line in found["runs"]}:
        plugins.clear()
        dataset = load_datasets(cfg=load_cfg(str(folder / "grid" / name))).train_dataset
        prompts, k = next((line["prompts"], line["k"]) for line in found["runs"] if line["recipe"] == name)
        assert [len(lengths) for lengths in dataset["segment_lengths"]] == [k] * prompts
    plugins.clear()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mrt": {"k": 2, "curation": ["default"]}}, "mrt.curation"),
        ({"datasets": []}, "one entry under datasets"),
        ({"datasets": [{"path": "p.jsonl", "type": "mrt_plugin.axolotl.all"}]}, "keeps K of the pool"),
        ({"datasets": [{"path": "p.jsonl", "type": "alpaca"}]}, "keeps K of the pool"),
    ],
)
def test_recipes_that_no_grid_can_be_made_of(tmp_path, change, named):
    path = axolotl_recipe.write(tmp_path, axolotl_recipe.recipe(tmp_path, "model") | change)
    assert named in " ".join(mrt("--recipe", path, status=1).output.split())


def test_costs_come_from_a_plan_a_tokenizer_or_the_user(tmp_path, tiny_model_dir):
    pool = axolotl_recipe.write_rows(tmp_path / "pool.jsonl", axolotl_recipe.groups(20, 5))
    assert "Equal cost needs costs" in mrt(pool, status=1).output
    by_tokens = json.loads(mrt(pool, "--tokenizer", tiny_model_dir, "--json").stdout)
    assert by_tokens["costs"]["prompt"] > by_tokens["costs"]["response"] > 0
    given = json.loads(mrt(pool, "--cost-prompt", 40, "--cost-response", 10, "--k", "1,5", "--json").stdout)
    assert by_arm(given["settings"], "equal cost")[5]["prompts"] == 20 * 50 // 90
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps({"model": {"costs": {"prompt": 40, "response": 10}, "layout": "shared_prefix", "budget": 500}})
    )
    planned = json.loads(mrt(pool, "--plan", plan, "--k", "1,5", "--json").stdout)
    assert by_arm(planned["settings"], "equal cost")[1]["prompts"] == 10
    plan.write_text(json.dumps({"model": None}))
    assert "is not what `mrt plan DATA --model MODEL --json` prints" in mrt(pool, "--plan", plan, status=1).output


@pytest.mark.slow
def test_results_are_read_from_the_runs_and_fitted(tmp_path):
    """One run is a real one, whose loss is in its trainer's own file; the others follow 1 + 2/K."""
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1),
        train_dataset=make_groups(4, 2),
        eval_dataset=make_groups(4, 2, first=4),
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    assert last_held_out_loss(tmp_path / "out") == pytest.approx(loss)
    lines = [
        {"arm": "equal cost", "k": 1, "loss": None, "output_dir": str(tmp_path / "out")},
        {
            "arm": "equal cost",
            "k": 2,
            "loss": None,
            "output_dir": str(tmp_path / "nothing"),
            "recipe": "n5-k2-r0.yaml",
        },
        *({"arm": "equal pairs", "k": k, "loss": 1 + 2 / k + noise} for k in (1, 2, 4) for noise in (-0.01, 0.01)),
    ]
    runs = tmp_path / "runs.jsonl"
    axolotl_recipe.write_rows(runs, lines)
    found = json.loads(mrt("--results", runs, "--json").stdout)
    assert found["missing"] == ["n5-k2-r0.yaml"]
    assert found["arms"]["equal cost"]["by_k"][0]["loss"] == pytest.approx(loss)
    assert found["arms"]["equal cost"]["fit"] is None
    pairs = found["arms"]["equal pairs"]
    assert (pairs["fit"]["a"], pairs["fit"]["b"]) == (pytest.approx(1.0), pytest.approx(2.0))
    assert pairs["best_k"] == 4
    last = pairs["by_k"][-1]
    assert last["difference"] == pytest.approx(-1.5)
    assert last["error"] == pytest.approx(0.01)
    assert last["difference_error"] == pytest.approx(0.01 * 2**0.5)
    shown = mrt("--results", runs).output
    assert "Without a result so far: n5-k2-r0.yaml" in shown
    assert "equal pairs" in shown


def test_results_that_are_none(tmp_path):
    runs = tmp_path / "runs.jsonl"
    runs.write_text('{"k": 1, "loss": null}\n')
    assert "no run has a result yet" in mrt("--results", runs, status=1).output
    runs.write_text('{"k": 1, "loss": "NaN"}\nnothing\n')
    shown = mrt("--results", runs, status=1).output
    assert "needs k above 0 and a finite loss" in shown
    assert "line 2" in shown


def test_one_run_has_no_error_and_one_k_no_fit():
    found = weigh_results([Run(4, 1.5)])["all runs"]
    assert found.by_k[0].error is None
    assert found.fit is None
