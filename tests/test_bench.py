"""`mrt bench`: its arms train the same pairs and leave the model alone, and what it counts is right.

No test looks at a time.
"""

import gc
import json
from dataclasses import replace

import pytest
import torch
from helpers import tiny
from typer.testing import CliRunner

from mrt_plugin.bench.model import BenchModel, ModelChoice, load_model
from mrt_plugin.bench.plot import plot
from mrt_plugin.bench.probes import (
    ATTENTION,
    HEAD,
    LINEAR,
    MIB,
    OPTIMIZER,
    PIECES,
    PeakMemory,
    StepProfile,
    losses,
)
from mrt_plugin.bench.run import ArmResult, BenchResult, BenchSettings, ShapeResult, run_bench
from mrt_plugin.bench.shapes import DEFAULT_SHAPES, Shape, draw_groups, token_ratio
from mrt_plugin.bench.turn import all_arms, make_data, take_turn
from mrt_plugin.cli import app
from recipes.benchmarks.memory import compare

SHAPE = Shape(12, 5, 3)


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """As `run_bench` does: a turn collects garbage, which takes long where much has been imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def make_model(**options) -> BenchModel:
    model = tiny.llama(vocab_size=250)
    return BenchModel(model, tiny.tokenizer(), bf16=False, **options)


def make_groups(mixed=True, count=6):
    return draw_groups(SHAPE, count, 250, mixed=mixed)


# ------------------------------------------------------------------ data


def test_the_token_ratios_are_those_of_the_issue():
    found = [token_ratio(draw_groups(shape, 1, 1000)) for shape in DEFAULT_SHAPES]
    assert [round(ratio, 2) for ratio in found] == [5.64, 4.47, 3.32, 1.59, 1.17, 1.0]


def test_a_group_depends_on_the_seed_and_its_number_alone():
    assert draw_groups(SHAPE, 5, 250, mixed=True)[:2] == draw_groups(SHAPE, 2, 250, mixed=True)
    assert draw_groups(SHAPE, 1, 250, seed=1) != draw_groups(SHAPE, 1, 250)


def test_mixed_lengths_have_the_mean_of_the_shape_and_differ():
    pairs = [pair for group in draw_groups(Shape(200, 40, 2), 300, 250, mixed=True) for pair in group]
    responses = [pair.trained_length for pair in pairs]
    prompts = [len(pair.input_ids) - pair.trained_length for pair in pairs]
    assert sum(responses) / len(responses) == pytest.approx(40, rel=0.1)
    assert sum(prompts) / len(prompts) == pytest.approx(200, rel=0.1)
    assert len(set(responses)) > 20


@pytest.mark.parametrize("text", ["512,64", "a,b,c", "512,64,0", "1,64,8", "512,0,8", ""])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(ValueError, match="is no shape"):
        Shape.parse(text)


# ------------------------------------------------------------------ arms


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_arms_train_the_same(checkpointing):
    """The mean loss over the steps and the last step's gradient, at every micro-batch size, on mixed lengths."""
    setting, data = make_model(gradient_checkpointing=checkpointing), make_data(make_groups(), 2)
    found = {}
    for arm in all_arms(["sdpa", "dense"]):
        for size in (arm.sizes(SHAPE.k, 2)[0], arm.sizes(SHAPE.k, 2)[-1]):
            turn = take_turn(arm, setting, data, size, steps=3)
            assert len(turn.seconds) == 2
            found[arm.name, size] = (turn.loss, turn.gradient_norm)
    assert len(found) == 2 * len(all_arms(["sdpa", "dense"])) >= 10
    first = next(iter(found.values()))
    for name, values in found.items():
        assert values == pytest.approx(first, rel=1e-5), name


def test_other_pairs_give_another_loss():
    """What the comparison of losses rests on: one other response token is seen."""
    setting, groups = make_model(), make_groups()
    arm = all_arms(["sdpa"])[-1]
    before = take_turn(arm, setting, make_data(groups, 2), 2, steps=3)
    pair = groups[0][1]
    groups[0][1] = replace(pair, input_ids=[*pair.input_ids[:-1], (pair.input_ids[-1] + 1) % 250])
    after = take_turn(arm, setting, make_data(groups, 2), 2, steps=3)
    assert after.loss != pytest.approx(before.loss, rel=1e-4)


def test_turns_leave_the_model_as_it_was():
    setting, data = make_model(), make_data(make_groups(), 2)
    model = setting.model
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    attention = model.config._attn_implementation
    output = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    for arm in all_arms(["sdpa"]):
        take_turn(arm, setting, data, arm.sizes(SHAPE.k, 2)[-1], steps=2)
        assert "forward" not in vars(model)
        assert model.config._attn_implementation == attention
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(model.eval()(input_ids=torch.tensor([[5, 6, 7]])).logits, output)


def test_lora_and_four_bits(tiny_model_dir):
    pytest.importorskip("bitsandbytes")
    setting = load_model(ModelChoice(tiny_model_dir, dtype="float32", load_in_4bit=True), "cpu")
    trained = [name for name, weight in setting.model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    data = make_data(make_groups(), 2)
    found = [take_turn(arm, setting, data, arm.sizes(SHAPE.k, 2)[-1], steps=2) for arm in all_arms(["sdpa"])]
    assert [turn.loss for turn in found] == pytest.approx([found[0].loss] * len(found), rel=1e-5)
    assert [turn.gradient_norm for turn in found] == pytest.approx([found[0].gradient_norm] * len(found), rel=1e-4)


# ------------------------------------------------------------------ probes


def test_peak_memory_is_the_most_held_at_once():
    model = tiny.llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    weights = sum(weight.nbytes for weight in model.parameters())
    probe = PeakMemory()
    probe.start(model, optimizer)
    first = torch.empty(5 * MIB, dtype=torch.uint8)
    second = torch.empty(3 * MIB, dtype=torch.uint8)
    del first
    third = torch.empty(4 * MIB, dtype=torch.uint8)
    del second, third
    probe.stop()
    assert probe.step == pytest.approx(8 * MIB, abs=1024)
    assert probe.resting == pytest.approx(3 * weights, rel=0.01)


@pytest.mark.slow
def test_more_responses_need_more_memory_than_one_and_less_than_copies_of_the_prompt():
    setting = make_model()
    steps = {}
    for k in (1, 8):
        data = make_data(draw_groups(Shape(256, 8, k), 2, 250), 1)
        for arm in all_arms(["sdpa"]):
            probe = PeakMemory()
            take_turn(arm, setting, data, arm.sizes(k, 1)[-1], steps=2, probe=probe)
            steps[arm.name, k] = probe.step
    shared, expanded = "mrt shared sdpa", "mrt expanded"
    assert steps[shared, 1] < steps[shared, 8] < 1.35 * steps[shared, 1]
    assert steps[expanded, 8] > 4 * steps[expanded, 1]


@pytest.mark.slow
def test_the_pieces_of_a_step_add_up():
    setting, data = make_model(), make_data(make_groups(), 2)
    for arm in all_arms(["sdpa", "dense"]):
        probe = StepProfile(vocabulary=250)
        take_turn(arm, setting, data, arm.sizes(SHAPE.k, 2)[-1], steps=2, probe=probe)
        assert set(probe.seconds) == set(PIECES)
        for piece in (LINEAR, ATTENTION, HEAD, OPTIMIZER):
            assert 0 < probe.seconds[piece] < 0.9 * sum(probe.seconds.values()), (arm.name, piece)


def test_what_the_pieces_lose_is_what_the_step_lacks():
    theirs, ours = {"a": 4.0, "b": 2.0, "c": 0.1}, {"a": 1.0, "b": 0.7, "c": 0.1}
    fraction = sum(theirs.values()) / sum(ours.values()) / 4
    assert sum(losses(ours, theirs, 4).values()) == pytest.approx(1 - fraction)


# ------------------------------------------------------------------ all of it


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The output of one small benchmark on the default model, and its picture."""
    picture = tmp_path_factory.mktemp("bench") / "bench.png"
    options = ["--groups", "1", "--steps", "1", "--rounds", "2", "--breakdown", "--json", "--plot", str(picture)]
    result = CliRunner().invoke(
        app, ["bench", "--shape", "8,4,2", "--prefix-backend", "auto", "--prefix-backend", "fork", "--mixed", *options]
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), picture


@pytest.mark.slow
def test_the_result_says_what_was_measured_on_what(printed):
    result, picture = printed
    assert {"device", "cores", "threads", "load", "torch", "transformers", "trl"} <= set(result["machine"])
    assert result["settings"]["dtype"] == "float32"
    (shape,) = result["shapes"]
    assert (shape["prompt"], shape["response"], shape["k"]) == (8, 4, 2)
    arms = {arm["name"]: arm for arm in shape["arms"]}
    assert {"trl nll", "mrt expanded", "mrt shared sdpa"} <= set(arms)
    for arm in arms.values():
        if "error" not in arm:
            assert [len(turn) for turn in arm["step_seconds"]] == [1, 1]
            assert arm["peak_mib"] > arm["step_mib"] > 0
            assert arm["fraction"] == pytest.approx(arm["speedup"] / shape["token_ratio"])
    fastest = max(arm["pairs_per_second"] for arm in arms.values() if arm["trl"])
    assert arms["mrt expanded"]["speedup"] == pytest.approx(arms["mrt expanded"]["pairs_per_second"] / fastest)
    assert arms["mrt expanded"]["loss"] == pytest.approx(arms["trl nll"]["loss"], rel=1e-5)
    assert set(shape["breakdown"]["lost"]) == set(PIECES)
    assert picture.stat().st_size > 5000


@pytest.mark.slow
def test_an_arm_that_cannot_run_or_differs_has_an_error_and_no_speed(monkeypatch):
    settings = BenchSettings(
        shapes=[Shape(8, 4, 1)],
        groups=1,
        steps=1,
        rounds=1,
        prefix_backends=["flex", "sdpa"],
    )
    # A broken arm, as a bug would make it: it trains on other labels.
    from mrt_plugin.bench import turn as arms

    def broken(pairs):
        row = intact(pairs)
        row["loss_weights"] = [1.1 * weight for weight in row["loss_weights"]]
        return row

    intact = arms.build_group_row
    monkeypatch.setattr(arms, "build_group_row", broken)
    (shape,) = run_bench(settings).as_json()["shapes"]
    found = {arm["name"]: arm for arm in shape["arms"]}
    assert "flex" in found["mrt shared flex"]["error"]
    assert "pairs_per_second" not in found["mrt shared flex"]
    for name in ("mrt expanded", "mrt shared sdpa"):
        assert "not the same training" in found[name]["error"]
        assert "speedup" not in found[name]
    assert "speedup" in found["trl nll"]


@pytest.mark.slow
def test_the_table_and_the_errors_of_the_command():
    runner = CliRunner()
    table = runner.invoke(app, ["bench", "--shape", "8,4,1", "--groups", "1", "--steps", "1", "--rounds", "1"])
    assert table.exit_code == 0, table.output
    assert "mrt shared sdpa" in table.stdout
    assert "token ratio 1.00" in table.stdout
    for wrong in (["--shape", "8,4"], ["--dtype", "int3"], ["--load-in-4bit"]):
        failed = runner.invoke(app, ["bench", *wrong])
        assert failed.exit_code == 1
        assert "error: " in failed.stderr


def test_only_some_arms():
    settings = BenchSettings(shapes=[Shape(8, 4, 1)], only="mrt", groups=1, steps=1, rounds=1)
    (shape,) = run_bench(settings).shapes
    assert [arm.name for arm in shape.arms] == ["mrt expanded", "mrt shared sdpa"]
    assert all(arm.speedup is None and arm.error is None for arm in shape.arms)
    with pytest.raises(ValueError, match="no trainer"):
        run_bench(replace(settings, only="trlx"))


def test_a_plot_of_arms_that_could_not_run(tmp_path):
    arms = [ArmResult("a", True, speedup=1.0), ArmResult("b", False, error="no")]
    shape = ShapeResult(Shape(8, 4, 2), 1.3, arms, None)
    plot(BenchResult({"device": "test"}, {}, [shape]), tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 5000


@pytest.mark.slow
def test_a_tree_needs_the_memory_of_a_row_of_as_many_tokens():
    found = compare(ModelChoice(), "cpu", (400, 16, 16, 4, 4), gradient_checkpointing=False)
    assert found["tokens"] == 399 + 4 * (16 + 4 * 17)
    (_, tree), *others = found["rows"].values()
    assert len(others) == 4
    assert tree < 1.25 * min(step for _, step in others)
