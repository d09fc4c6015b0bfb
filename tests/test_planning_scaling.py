"""Prompts against responses at equal annotations, and the axes of a grid: settings, recipes and what results say."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import axolotl_recipe
from helpers.cli import CliRunner
from scipy.stats import linregress

from mrt_plugin import load_groups
from mrt_plugin.cli import app
from mrt_plugin.curation import curate, parse_rules
from mrt_plugin.planning.budget import Costs
from mrt_plugin.planning.diversity import prompt_diversity
from mrt_plugin.planning.grid import combine_axes, make_grid, parse_axes
from mrt_plugin.planning.scaling import POWERS, make_scaling, scaling_result


def mrt(*arguments: Any, status: int = 0) -> Any:
    done = CliRunner().invoke(app, ["grid", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return done


class TestAxes:
    def test_every_combination_that_differs(self) -> None:
        axes = parse_axes(["selector=random_k,best_k,diverse_best_k", "alpha=0.25,1", "layout=auto,expanded"])
        found, merged = combine_axes(axes)
        assert len(found) == 8  # two layouts of two plain selectors, and of two alphas
        assert {"selector": "diverse_best_k", "alpha": 1, "layout": "expanded"} in found
        assert {"selector": "random_k", "layout": "auto"} in found
        assert merged == [
            "alpha with selector=random_k: it changes nothing there.",
            "alpha with selector=best_k: it changes nothing there.",
        ]
        assert combine_axes({}) == ([{}], [])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("selectr=random_k", "did you mean selector"),
            ("k=1,2", "take an option of"),
            ("alpha=", "write each axis once"),
        ],
    )
    def test_mistakes(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_axes([text])

    @pytest.mark.parametrize(
        ("axes", "message"),
        [
            ({"alpha": [-1], "selector": ["diverse_best_k"]}, "alpha=-1 must be"),
            ({"layout": ["sharde"]}, "layout='sharde' is unknown"),
            ({"selector": ["all"]}, "keeps every response"),
            ({"selector": ["bst_k"]}, "bst_k"),
        ],
    )
    def test_values_out_of_bounds(self, axes: dict[str, list[Any]], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            combine_axes(axes)

    def test_a_layout_decides_the_cost(self) -> None:
        combinations, _ = combine_axes({"layout": ["shared_prefix", "expanded"]})
        grid = make_grid([4] * 100, Costs(40, 10), ks=(1, 4), combinations=combinations, arms=["equal cost"])
        found = {(row.options["layout"], row.k): row.prompts for row in grid.settings}
        assert found == {
            ("shared_prefix", 1): 100,
            ("shared_prefix", 4): 5000 // 80,
            ("expanded", 1): 100,
            ("expanded", 4): 5000 // 200,
        }

    def test_recipes_and_results(self, tmp_path: Path, tiny_model_dir: str) -> None:
        base = axolotl_recipe.write(tmp_path, axolotl_recipe.recipe(tmp_path, tiny_model_dir))
        how = ["--recipe", base, "--output", tmp_path / "grid", "--k", "2,4", "--arm", "equal prompts"]
        axes = ["--axis", "selector=random_k,diverse_best_k", "--axis", "alpha=0.25,1", "--axis", "layout=expanded"]
        found = json.loads(mrt(*how, *axes, "--json").stdout)
        assert len(found["runs"]) == 6
        lines = []
        for number, line in enumerate(found["runs"]):
            made = yaml.safe_load((tmp_path / "grid" / line["recipe"]).read_text())
            options = dict(line["options"])
            assert made["datasets"][0]["type"] == f"mrt_plugin.axolotl.{options.pop('selector')}"
            assert made["mrt"].items() >= {**options, "k": line["k"], "layout": "expanded"}.items()
            assert line["recipe"].removesuffix(".yaml") == Path(made["output_dir"]).name
            lines.append(line | {"loss": 1.0 + number})
        assert len({line["recipe"] for line in lines}) == 6
        axolotl_recipe.write_rows(tmp_path / "grid" / "runs.jsonl", lines)
        arms = json.loads(mrt("--results", tmp_path / "grid" / "runs.jsonl", "--json").stdout)["arms"]
        assert set(arms) == {
            "equal prompts, selector=random_k, layout=expanded",
            "equal prompts, selector=diverse_best_k, alpha=0.25, layout=expanded",
            "equal prompts, selector=diverse_best_k, alpha=1, layout=expanded",
        }
        assert all(len(arm["by_k"]) == 2 for arm in arms.values())
        shown = mrt("--recipe", base, "--k", "2,4", "--arm", "equal prompts", *axes).output
        assert "Left out: alpha with selector=random_k" in shown


class TestDesign:
    def test_annotations_are_equal(self) -> None:
        grid = make_scaling(
            [4] * 500, [1200, 600], recipe={"num_epochs": 2, "micro_batch_size": 8}, durations=["epochs", "steps"]
        )
        assert [(row.arm, row.annotations, row.k, row.prompts) for row in grid.settings[:5]] == [
            ("equal epochs", 600, 2, 300),
            ("equal epochs", 600, 3, 200),
            ("equal epochs", 600, 4, 150),
            ("equal epochs", 1200, 3, 400),
            ("equal epochs", 1200, 4, 300),
        ]
        assert grid.left_out == ["1,200 annotations, K = 2: it takes 600 prompts, and there are 500."]
        assert {row.steps for row in grid.settings if row.arm == "equal epochs"} == {None}
        assert {row.steps for row in grid.settings if row.arm == "equal steps"} == {2 * 400 // 8}

    @pytest.mark.parametrize(
        ("sizes", "annotations", "message"),
        [
            ([4, 3], [8], "1 of 2 prompts have fewer than 4 responses"),
            ([4] * 9, [3], "3 annotations do not pay for one prompt with 4 responses"),
            ([4] * 9, [100], "Fewer than two settings are left"),
        ],
    )
    def test_refusals(self, sizes: list[int], annotations: list[int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_scaling(sizes, annotations, durations=["epochs"])

    def test_recipes_draw_nested_prompts_and_record_their_diversity(self, tmp_path: Path, tiny_model_dir: str) -> None:
        settings = axolotl_recipe.recipe(tmp_path, tiny_model_dir, val_set_size=0.2, num_epochs=3, max_steps=None)
        base = axolotl_recipe.write(tmp_path, settings)
        how = ["--recipe", base, "--output", tmp_path / "grid", "--annotations", "12,24", "--repeats", 2, "--json"]
        found = json.loads(mrt(*how).stdout)
        assert len(found["runs"]) == 2 * len(found["settings"]) == 24
        groups, kept = load_groups(tmp_path / "pool.jsonl"), {}
        for line in found["runs"]:
            made = yaml.safe_load((tmp_path / "grid" / line["recipe"]).read_text())
            assert made["mrt"]["k"] * line["prompts"] == line["annotations"]
            (rule,) = made["mrt"]["curation"]
            assert rule == {"sample": {"groups": line["prompts"], "seed": line["repeat"]}}
            if line["arm"] == "equal steps":
                batch = made.get("micro_batch_size", 1) * made.get("gradient_accumulation_steps", 1)
                assert made["max_steps"] == line["steps"]
                assert made["num_epochs"] * line["prompts"] >= line["steps"] * batch
            else:
                assert made["num_epochs"] == 3
                assert "max_steps" not in made
            drawn = curate(groups, parse_rules([rule]), seed=made["seed"]).groups
            kept[line["repeat"], line["prompts"]] = set(drawn["id"])
        for repeat in (0, 1):
            nested = [kept[repeat, n] for n in sorted(n for r, n in kept if r == repeat)]
            assert all(small < large for small, large in itertools.pairwise(nested))
        assert kept[0, 6] != kept[1, 6]
        steps = {line["steps"] for line in found["runs"] if line["arm"] == "equal steps"}
        assert len(steps) == 1

    @pytest.mark.axolotl
    def test_axolotl_takes_the_steps(
        self, tmp_path: Path, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("axolotl")
        from axolotl.cli.config import load_cfg
        from axolotl.common.datasets import load_datasets
        from axolotl.integrations.base import PluginManager

        settings = axolotl_recipe.recipe(tmp_path, tiny_model_dir, num_epochs=3, max_steps=None)
        base = axolotl_recipe.write(tmp_path, settings)
        monkeypatch.chdir(tmp_path)
        found = json.loads(
            mrt("--recipe", base, "--output", tmp_path / "grid", "--annotations", "36", "--json").stdout
        )
        plugins = PluginManager.get_instance().plugins
        for line in found["runs"]:
            plugins.clear()
            cfg = load_cfg(str(tmp_path / "grid" / line["recipe"]))
            meta = load_datasets(cfg=cfg)
            assert [len(lengths) for lengths in meta.train_dataset["segment_lengths"]] == [line["k"]] * line["prompts"]
            if line["arm"] == "equal steps":
                assert meta.total_num_steps == line["steps"]
        plugins.clear()

    def test_without_a_recipe(self, tmp_path: Path) -> None:
        pool = axolotl_recipe.write_rows(tmp_path / "pool.jsonl", axolotl_recipe.groups(20, 4))
        shown = mrt(pool, "--annotations", "24,48", "--output", tmp_path / "grid").output
        assert "mrt grid --results" in shown
        lines = [json.loads(line) for line in (tmp_path / "grid" / "runs.jsonl").read_text().splitlines()]
        groups = load_groups(pool)
        for line in lines:
            rule = {"sample": {"groups": line["prompts"], "seed": 0}}
            drawn = curate(groups, parse_rules([rule]), seed=0).groups
            found = prompt_diversity(drawn["prompt"], order=3)
            assert line["ngrams"]["3"] == [found.distinct, found.total]
        assert (
            "Equal steps need a --recipe" in mrt(pool, "--annotations", "24", "--duration", "steps", status=1).output
        )
        assert "needs --annotations" in mrt(pool, "--duration", "steps", status=1).output
        assert "needs a run without --annotations" in mrt(pool, "--annotations", "9", "--pairs", 3, status=1).output


class TestResults:
    def runs(self, path: Path, slope: float = 2.0, noise: float = 0.0) -> list[dict[str, Any]]:
        """Runs whose score is 1 + slope·r·n^0.5 with bigrams."""
        random, lines = np.random.default_rng(0), []
        for annotations, k, repeat in itertools.product((600, 1200, 2400), (2, 3, 4), range(3)):
            n = annotations // k
            ngrams = {str(order): [int((0.2 * order + 30 / n + 0.01 * repeat) * 9 * n), 9 * n] for order in (1, 2, 3)}
            distinct, total = ngrams["2"]
            score = 1 + slope * distinct / total * n**0.5 + noise * random.normal()
            line = {"arm": "equal epochs", "annotations": annotations, "k": k, "prompts": n, "repeat": repeat}
            lines.append(line | {"score": score, "ngrams": ngrams})
        axolotl_recipe.write_rows(path, lines)
        return lines

    def test_the_table_and_the_law(self, tmp_path: Path) -> None:
        lines = self.runs(tmp_path / "runs.jsonl")
        found = scaling_result(tmp_path / "runs.jsonl")
        assert found.measure == "score"
        assert len(found.cells) == 9
        (cell,) = [cell for cell in found.cells if (cell.annotations, cell.k) == (1200, 3)]
        scores = [line["score"] for line in lines if (line["annotations"], line["k"]) == (1200, 3)]
        assert (cell.prompts, cell.runs) == (400, 3)
        assert cell.score == pytest.approx(np.mean(scores))
        assert cell.error == pytest.approx(np.std(scores, ddof=1) / 3**0.5)
        right = [fit for fit in found.fits if fit.order == 2 and fit.p == 0.5]
        assert {fit.k for fit in right} == {2, 3, 4, None}
        for fit in right:
            assert (fit.slope, fit.intercept) == (pytest.approx(2), pytest.approx(1))
            assert fit.mse < 1e-12
            assert fit.r_squared == pytest.approx(1)
        # Another order or another p fits worse: the sensitivity.
        others = [fit for fit in found.fits if fit.k is None and not fit.searched and (fit.order, fit.p) != (2, 0.5)]
        assert len(others) == 3 * len(POWERS) - 1
        assert min(fit.mse for fit in others) > 1e-6
        searched = {fit.order: fit for fit in found.fits if fit.k is None and fit.searched}
        assert searched[2].p == pytest.approx(0.5)

    def test_fits_are_those_of_scipy(self, tmp_path: Path) -> None:
        lines = self.runs(tmp_path / "runs.jsonl", noise=0.3)
        (fit,) = [
            fit
            for fit in scaling_result(tmp_path / "runs.jsonl").fits
            if (fit.k, fit.order, fit.p, fit.searched) == (None, 3, 0.25, False)
        ]
        d = [line["ngrams"]["3"][0] / line["ngrams"]["3"][1] * line["prompts"] ** 0.25 for line in lines]
        slow = linregress(d, [line["score"] for line in lines])
        assert (fit.slope, fit.intercept) == (pytest.approx(slow.slope), pytest.approx(slow.intercept))
        assert fit.r_squared == pytest.approx(slow.rvalue**2)

    def test_it_is_shown(self, tmp_path: Path) -> None:
        self.runs(tmp_path / "runs.jsonl", noise=0.1)
        shown = mrt("--results", tmp_path / "runs.jsonl").output
        for words in ("score by number of prompts", "d = r·n^0.5 with bigrams", "MSE of score on d", "best p"):
            assert words in shown
        found = json.loads(mrt("--results", tmp_path / "runs.jsonl", "--json").stdout)
        assert found["missing"] == []

    def test_losses_and_missing_runs(self, tmp_path: Path) -> None:
        lines = self.runs(tmp_path / "runs.jsonl")
        for number, line in enumerate(lines):
            line["loss"] = line.pop("score") if number % 3 else line.pop("score") * 0 + 2
        del lines[0]["loss"]
        axolotl_recipe.write_rows(tmp_path / "runs.jsonl", lines)
        found = scaling_result(tmp_path / "runs.jsonl")
        assert (found.measure, found.missing) == ("loss", ["line 1"])
        for line in lines:
            line["loss"] = None
        axolotl_recipe.write_rows(tmp_path / "runs.jsonl", lines)
        assert "no run has a result yet" in mrt("--results", tmp_path / "runs.jsonl", status=1).output

    def test_broken_lines_are_named(self, tmp_path: Path) -> None:
        lines = self.runs(tmp_path / "runs.jsonl")
        del lines[3]["ngrams"]
        axolotl_recipe.write_rows(tmp_path / "runs.jsonl", lines)
        shown = mrt("--results", tmp_path / "runs.jsonl", status=1).output
        assert "line 4" in shown
        assert "is not a run of this design" in shown
