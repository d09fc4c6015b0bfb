"""Generated data with known modes, the measures on it, and the demo that trains on it."""

import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import tiny
from helpers.processes import run_python
from peft import LoraConfig, get_peft_model

from mrt_plugin.demo.modes import draw_groups, mode_prompts, split_prompts
from mrt_plugin.demo.run import (
    RESULTS,
    DemoResults,
    DemoRun,
    DemoSettings,
    Intervals,
    Measures,
    picture,
    takeaway,
    whole_folder,
)
from mrt_plugin.demo.training import axolotl_train
from mrt_plugin.encoding import Encoder
from mrt_plugin.evaluation.held_out import held_out_nll
from mrt_plugin.models.load import load_model
from mrt_plugin.models.log_likelihood import log_likelihoods
from mrt_plugin.models.tiny_model import build_llama, build_tokenizer, pretrain, save


class TestModes:
    def test_probabilities_sum_to_one_and_modes_differ(self) -> None:
        world = mode_prompts(seed=3)
        assert len({item.id for item in world}) == len({item.prompt for item in world}) == len(world) == 640
        for item in world:
            assert len(set(item.modes)) == len(item.modes) == len(item.probabilities) == 18
            assert sum(item.probabilities) == pytest.approx(1)
            assert 0 < scipy.stats.entropy(item.probabilities) < np.log(18)

    def test_a_world_is_its_seed(self) -> None:
        assert mode_prompts(seed=1) == mode_prompts(seed=1)
        assert mode_prompts(seed=1)[0].probabilities != mode_prompts(seed=2)[0].probabilities

    def test_the_truth_depends_on_the_prompt(self) -> None:
        drinks = [item for item in mode_prompts() if item.id.startswith("drink")]
        assert len({item.modes[int(np.argmax(item.probabilities))] for item in drinks}) > 3

    def test_draws_follow_the_truth(self) -> None:
        (item,) = mode_prompts(seed=5)[7:8]
        (group,) = draw_groups([item], n=20_000, seed=0)
        shares = np.array([group["responses"].count(mode) for mode in item.modes]) / 20_000
        error = np.sqrt(np.array(item.probabilities) / 20_000) + 1e-9
        assert (np.abs(shares - item.probabilities) < 5 * error + 1e-4).all()

    def test_a_group_does_not_depend_on_its_neighbours(self) -> None:
        world = mode_prompts()[:20]
        whole = draw_groups(world, n=8, seed=4)
        assert draw_groups(world[::-1], n=8, seed=4) == whole[::-1]
        assert draw_groups(world, n=8, seed=5) != whole

    def test_the_split_is_complete_and_disjoint(self) -> None:
        world = mode_prompts()
        train, rest = split_prompts(world, 160, seed=0)
        assert len(train) == 160
        assert {item.id for item in train} | {item.id for item in rest} == {item.id for item in world}
        assert len(train) + len(rest) == len(world)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tiny.tokenizer())


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny.llama(seed=1)


PROMPT = "Name a fruit that grows on trees."
RESPONSES = ["An apple.", "A pear is a fruit too, and so is a plum or a cherry.", "Rome"]


class TestLikelihood:
    def test_is_the_models_own(self, model: torch.nn.Module, encoder: Encoder) -> None:
        pairs = encoder.encode_group(PROMPT, RESPONSES)
        scores = log_likelihoods(model, pairs)
        for pair, score in zip(pairs, scores, strict=True):
            labels = [token if on else -100 for token, on in zip(pair.input_ids, pair.trained, strict=True)]
            loss = model(input_ids=torch.tensor([pair.input_ids]), labels=torch.tensor([labels])).loss
            assert score == pytest.approx(-loss.item() * pair.trained_length, rel=1e-5)

    def test_neither_batches_nor_order_matter(self, model: torch.nn.Module, encoder: Encoder) -> None:
        pairs = encoder.encode_group(PROMPT, RESPONSES * 4)
        whole = log_likelihoods(model, pairs)
        assert log_likelihoods(model, pairs, batch_tokens=1) == pytest.approx(whole, rel=1e-5)
        assert log_likelihoods(model, pairs[::-1])[::-1] == pytest.approx(whole, rel=1e-5)

    def test_an_adapter_counts_and_dropout_does_not(self, encoder: Encoder) -> None:
        pairs = encoder.encode_group(PROMPT, RESPONSES)
        base = log_likelihoods(tiny.llama(seed=1), pairs)
        config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
        adapted = get_peft_model(tiny.llama(seed=1), config).train()
        scores = log_likelihoods(adapted, pairs)
        assert np.abs(scores - base).max() > 1e-3
        assert (log_likelihoods(adapted, pairs) == scores).all()
        assert adapted.training

    def test_progress_counts_the_pairs(self, model: torch.nn.Module, encoder: Encoder) -> None:
        seen: list[int] = []
        log_likelihoods(model, encoder.encode_group(PROMPT, RESPONSES), batch_tokens=1, progress=seen.append)
        assert seen == [1, 1, 1]


class TestHeldOut:
    def test_tokens_or_prompts_have_one_vote(self, model: torch.nn.Module, encoder: Encoder) -> None:
        groups = [{"prompt": PROMPT, "responses": RESPONSES}, {"prompt": "What is it?", "responses": ["Rome"]}]
        per_token, per_response = held_out_nll(model, encoder, groups)
        scores = [
            log_likelihoods(model, encoder.encode_group(group["prompt"], group["responses"])) for group in groups
        ]
        tokens = sum(
            pair.trained_length
            for group in groups
            for pair in encoder.encode_group(group["prompt"], group["responses"])
        )
        assert per_token.value == pytest.approx(-sum(part.sum() for part in scores) / tokens, rel=1e-5)
        assert per_response.value == pytest.approx(-(scores[0].mean() + scores[1].mean()) / 2, rel=1e-5)
        assert (per_token.known.sum(), per_token.weights.sum()) == (2, tokens)

    def test_nothing_to_evaluate(self, model: torch.nn.Module, encoder: Encoder) -> None:
        with pytest.raises(ValueError, match="no groups"):
            held_out_nll(model, encoder, [])


class TestTinyModel:
    def test_learns_what_it_is_shown(self, tmp_path: Path) -> None:
        texts = ["Name a fruit.", "An apple.", "A pear."]
        encoder = Encoder(build_tokenizer(texts))
        model = build_llama(encoder.tokenizer)
        pairs = encoder.encode_group("Name a fruit.", ["An apple.", "A pear."])
        before = np.exp(log_likelihoods(model, pairs)).sum()
        steps: list[int] = []
        pretrain(model, lambda step: pairs, steps=80, progress=steps.append)
        after = np.exp(log_likelihoods(model, pairs))
        assert before < 0.01
        assert after == pytest.approx([0.5, 0.5], abs=0.05)
        assert steps == list(range(1, 81))
        save(model, encoder.tokenizer, tmp_path / "model")
        assert log_likelihoods(load_model(tmp_path / "model"), pairs) == pytest.approx(np.log(after), abs=1e-4)

    def test_is_its_seed(self) -> None:
        tokenizer = build_tokenizer(["a"])
        first, again, other = (build_llama(tokenizer, seed).lm_head.weight for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestWholeFolder:
    def test_appears_when_it_is_complete(self, tmp_path: Path) -> None:
        with whole_folder(tmp_path / "out", marker="done") as work:
            (work / "done").write_text("1")
            assert not (tmp_path / "out").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (tmp_path / "out/done").read_text() == "1"

    def test_a_failure_leaves_what_was_there(self, tmp_path: Path) -> None:
        with whole_folder(tmp_path / "out", marker="done") as work:
            (work / "done").write_text("old")
        with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "out", marker="done") as work:
            (work / "done").replace(work / "missing" / "done")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (tmp_path / "out/done").read_text() == "old"

    def test_an_earlier_result_is_replaced(self, tmp_path: Path) -> None:
        for name in ("first", "second"):
            with whole_folder(tmp_path / "out", marker="done") as work:
                (work / "done").touch()
                (work / name).touch()
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["done", "second"]

    def test_a_foreign_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").write_text("years of work")
        with pytest.raises(FileExistsError, match="choose another"), whole_folder(tmp_path / "out", marker="done"):
            pytest.fail("the block must not run")
        assert (tmp_path / "out/thesis.tex").read_text() == "years of work"


def run_of(name: str, kl: float) -> DemoRun:
    near = Intervals([0.31, 0.35], [kl - 0.1, kl + 0.1], [0.42, 0.5])
    held_out = Measures(0.33, kl, 0.46, 0.1)
    k = int(name[4:]) if name.startswith("K") else None
    return DemoRun(name, k, None, None, held_out, near, 2.0, 900, 0.5, 0.5)


RUNS = [run_of("base model", 1.8), run_of("K = 1", 0.858), run_of("K = 4", 0.7)]
FOUND = DemoResults(DemoSettings(), RUNS, Measures(0.29, 0.0, 1.0, 0.0), -0.158, [-0.2, -0.11], 60.0)


class TestPicture:
    def test_the_takeaway_has_the_interval_of_the_difference(self) -> None:
        said = "K = 4 ends 18% closer to the truth than K = 1 (KL −0.158 nats, 95% interval −0.200 to −0.110)"
        assert takeaway(FOUND) == said
        worse = replace(FOUND, kl_difference=0.1, kl_difference_interval=[0.05, 0.15])
        assert "12% further from the truth than K = 1 (KL +0.100" in takeaway(worse)
        for ends in ([-0.3, 0.01], None):
            assert "not clearly closer to the truth" in takeaway(replace(FOUND, kl_difference_interval=ends))

    def test_it_has_the_truth_as_a_line_and_the_intervals_as_error_bars(self) -> None:
        made = picture(FOUND)
        made.draw_without_rendering()
        for axis, name in zip(made.axes, ("held_out_nll", "kl", "coverage"), strict=True):
            (line,) = axis.lines
            assert set(line.get_ydata()) == {getattr(FOUND.truth, name)}
            bars = [part.get_segments()[0] for part in axis.collections if len(part.get_segments()) == 1]
            drawn = [[low[1], high[1]] for low, high in bars]
            assert drawn == [getattr(run.intervals, name) for run in RUNS]
            boxes = [text.get_window_extent() for text in axis.texts]
            assert not any(box.overlaps(other) for box, other in combinations(boxes, 2))
        for text in (made._suptitle, made._supxlabel):  # type: ignore[attr-defined]
            box = text.get_window_extent()
            assert made.bbox.x0 <= box.x0 < box.x1 <= made.bbox.x1
        assert "95% intervals over the 160 held-out prompts, one seed" in made.get_supxlabel()

    def test_few_prompts_have_no_error_bars(self) -> None:
        none = [replace(run, intervals=Intervals(None, None, None)) for run in RUNS]
        assert not any(axis.collections for axis in picture(replace(FOUND, runs=none)).axes)


@pytest.mark.axolotl
class TestDemo:
    """`mrt demo --quick`, as `make demo` runs it but for its size."""

    @pytest.mark.processes
    def test_everything_is_there_and_adds_up(self, demo: tuple[Path, dict]) -> None:
        folder, printed = demo
        assert json.loads((folder / RESULTS).read_text()) == printed
        assert [run["name"] for run in printed["runs"]] == ["base model", "K = 1", "K = 4"]
        for run in printed["runs"]:
            assert 0 <= run["coverage"] <= 1
            assert 0 <= run["elsewhere"] <= 1
            assert run["kl"] > 0
            assert run["held_out_nll"] > printed["truth"]["held_out_nll"]
            for name, (low, high) in run["intervals"].items():
                assert low <= run[name] <= high
        kls = [run["kl"] for run in printed["runs"]]
        assert printed["kl_difference"] == pytest.approx(kls[2] - kls[1])
        low, high = printed["kl_difference_interval"]
        assert low < printed["kl_difference"] < high
        assert printed["runs"][1]["kl"] != printed["runs"][0]["kl"]
        assert printed["sentence"].startswith("On prompts it was not trained on, 4 responses")
        with (folder / "results.png").open("rb") as image:
            assert image.read(8) == b"\x89PNG\r\n\x1a\n"

    @pytest.mark.processes
    def test_k_is_what_differs(self, demo: tuple[Path, dict]) -> None:
        folder, printed = demo
        prompts = printed["settings"]["train_prompts"]
        for k in (1, 4):
            log = (folder / f"k{k}.log").read_text()
            assert f"{prompts} groups, {k * prompts} pairs" in log
        one, four = ((folder / f"k{k}.yaml").read_text().splitlines() for k in (1, 4))
        different = [line for line, other in zip(one, four, strict=True) if line != other]
        assert [line.split(":")[0].strip() for line in different[-2:]] == ["k", "output_dir"]
        assert len(different) == 4  # with the two lines of the comment that name the recipe

    @pytest.mark.processes
    def test_the_measures_can_be_had_again(self, demo: tuple[Path, dict]) -> None:
        folder, printed = demo
        from transformers import AutoTokenizer

        model = load_model(folder / "model", folder / "k4", load_in_4bit=True, device="cpu")
        encoder = Encoder(AutoTokenizer.from_pretrained(folder / "k4"))
        groups = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
        again, _ = held_out_nll(model, encoder, groups)
        assert again.value == pytest.approx(printed["runs"][2]["held_out_nll"], rel=1e-5)

    @pytest.mark.processes
    def test_the_seed_gives_the_same_adapter(self, demo: tuple[Path, dict], tmp_path: Path) -> None:
        folder, _ = demo
        for name in ("model", "pool.jsonl", "k4.yaml"):
            copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
            copy(folder / name, tmp_path / name)
        axolotl_train(tmp_path, 4, epochs=1, seed=0, progress=lambda step: None)
        again, first = (path / "k4/adapter_model.safetensors" for path in (tmp_path, folder))
        assert again.read_bytes() == first.read_bytes()

    @pytest.mark.processes
    def test_nothing_else_is_left(self, demo: tuple[Path, dict]) -> None:
        folder, _ = demo
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("demo") / "demo_output"
    done = run_python(["-c", "from mrt_plugin.cli import app; app()", "demo", "--quick", "--json", "--output", folder])
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout)
