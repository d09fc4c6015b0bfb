"""`mrt bench`: its arms train the same pairs and leave the model alone, and what it counts is right.

No test looks at a time.
"""

import gc
import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import tiny
from helpers.cli import CliRunner
from helpers.trees import visible_by_definition
from transformers import LlamaConfig, LlamaForCausalLM

from mrt_plugin.bench.model import SIZES, BenchModel, ModelChoice, load_model, sized_config
from mrt_plugin.bench.plot import headline, picture, plot
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
from mrt_plugin.bench.shapes import DEFAULT_SHAPES, Shape, TurnShape, draw_groups, parse_shape, token_ratio
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
    found = [token_ratio(draw_groups(shape, 2, 1000), 2) for shape in DEFAULT_SHAPES]
    assert [round(ratio, 2) for ratio in found] == [5.64, 4.47, 3.32, 1.59, 1.17, 1.0]
    deep = [("1024,64,64,1", 16), ("512,128,64,4", 8), ("2048,128,128,4", 4), ("20x64,128,16", 1)]
    found = [token_ratio(draw_groups(parse_shape(text), groups, 1000), groups) for text, groups in deep]
    assert found == pytest.approx([18432 / 3087, 22528 / 3615, 36864 / 4623, 19360 / 4483], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pro", "plackett_luce", "dft"])
def test_an_objective_is_measured_over_the_expanded_layout(objective):
    """Both arms train the same thing, which the benchmark compares."""
    settings = BenchSettings([SHAPE], objective=objective, rounds=1, steps=1, cpu=True)
    (found,) = run_bench(settings).shapes
    assert [arm.name for arm in found.arms] == ["mrt expanded", "mrt shared sdpa"]
    assert all(arm.error is None for arm in found.arms)
    assert found.arms[0].speedup == 1
    assert found.arms[1].speedup > 0


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


def test_the_token_ratio_is_that_of_each_steps_beginnings():
    for shape in (SHAPE, Shape(6, 3, 2, system=40), TurnShape(4, 5, 6, 3)):
        groups = draw_groups(shape, 6, 20, mixed=True)
        pairs = [[pair.input_ids for pair in group] for group in groups]
        expanded = shared = 0
        for step in (pairs[:3], pairs[3:]):
            step = [ids for group in step for ids in group]
            expanded += sum(map(len, step))
            shared += len(visible_by_definition(step)[0])
        assert token_ratio(groups, 3) == expanded / shared, shape


def test_all_prompts_have_the_system_text_and_then_differ():
    first, second = draw_groups(Shape(30, 5, 2, system=50), 2, 1000, mixed=True)
    assert first[0].input_ids[:50] == second[0].input_ids[:50]
    assert first[0].input_ids[:52] == first[1].input_ids[:52] != second[0].input_ids[:52]
    assert not any(first[0].trained[:51])


def test_a_turns_context_has_the_answers_of_earlier_turns_without_their_thinking():
    (pairs,) = draw_groups(TurnShape(3, 10, 7, 4), 1, 1000)
    assert [len(pair.input_ids) for pair in pairs] == [21, 35, 49]
    assert [pair.trained for pair in pairs] == [[False] * n + [True] * 11 for n in (10, 24, 38)]
    for before, after in pairwise(pairs):
        context = before.input_ids[:-11] + before.input_ids[-4:]
        assert after.input_ids[: len(context)] == context
    assert len({token for pair in pairs for token in pair.input_ids[-11:]}) > 25


@pytest.mark.parametrize("text", ["512,64,8", "1024,64,64,1", "20x64,128,16", "2x2,0,1"])
def test_a_shape_is_written_as_it_is_read(text):
    assert str(parse_shape(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("512,64", "a,b,c", "512,64,0", "1,64,8", "512,0,8", "", "-1,512,64,8", "9,0,64,8", "1,2,3,4,5"),
        *("x64,128,16", "0x64,128,16", "20x64,128", "20x1,128,16", "20x64,-1,16", "20x64,128,0", "2x2x64,128,16"),
    ],
)
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(ValueError, match="is no shape: "):
        parse_shape(text)


@pytest.mark.parametrize(("groups", "pairs"), [(16, 1), (8, 4), (1, 20), (2, 8), (60, 1), (1, 1)])
def test_few_micro_batch_sizes_are_tried(groups, pairs):
    theirs, ours = all_arms(["sdpa"])[0], all_arms(["sdpa"])[-1]
    for arm, total in ((theirs, groups * pairs), (ours, groups)):
        sizes = arm.sizes(pairs, groups)
        assert (sizes[0], sizes[-1]) == (1, total)
        assert all(total % size == 0 for size in sizes)
        assert len(sizes) <= 1 + math.log2(total)
    assert theirs.sizes(1, 16) == ours.sizes(1, 16) == [1, 2, 4, 8, 16]
    assert theirs.sizes(20, 1) == [1, 2, 5, 10, 20]


# ------------------------------------------------------------------ arms


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "checkpointing"),
    [(SHAPE, False), (SHAPE, True), (Shape(6, 5, 1, system=20), False), (TurnShape(3, 6, 5, 3), False)],
    ids=str,
)
def test_all_arms_train_the_same(shape, checkpointing):
    """The mean loss over the steps and the last step's gradient, at every micro-batch size, on mixed lengths."""
    groups = draw_groups(shape, 6, 250, mixed=True)
    setting, data = make_model(gradient_checkpointing=checkpointing), make_data(groups, 2)
    found = {}
    for arm in all_arms(["sdpa", "dense"]):
        for size in (arm.sizes(shape.pairs, 2)[0], arm.sizes(shape.pairs, 2)[-1]):
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


TINY = {"vocab_size": 250, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


@pytest.fixture
def tiny_size(monkeypatch):
    """A known size that a CPU trains in no time, by the code that builds the large ones."""
    monkeypatch.setitem(SIZES, "tiny", (LlamaForCausalLM, LlamaConfig, {**TINY, "num_hidden_layers": 5}))
    return "tiny"


@pytest.mark.parametrize(("size", "parameters"), [("llama-8b", 8_030_261_248), ("qwen-4b", 4_022_468_096)])
def test_the_known_sizes_have_the_published_number_of_parameters(size, parameters):
    with torch.device("meta"):
        model = SIZES[size][0](sized_config(size))
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_random_model_of_a_known_size_in_four_bits(tiny_size, checkpointing):
    pytest.importorskip("bitsandbytes")
    choice = ModelChoice(size=tiny_size, layers=2, dtype="float32", load_in_4bit=True)
    setting = load_model(choice, "cpu", gradient_checkpointing=checkpointing)
    layers = setting.model.get_base_model().model.layers
    assert len(layers) == 2
    assert all(layer.mlp.up_proj.base_layer.weight.dtype == torch.uint8 for layer in layers)
    assert setting.model.get_output_embeddings().weight.std() == pytest.approx(0.02, rel=0.05)
    data = make_data(make_groups(), 2)
    found = [take_turn(arm, setting, data, arm.sizes(SHAPE.k, 2)[-1], steps=2) for arm in all_arms(["sdpa"])]
    assert [turn.loss for turn in found] == pytest.approx([found[0].loss] * len(found), rel=1e-5)
    assert [turn.gradient_norm for turn in found] == pytest.approx([found[0].gradient_norm] * len(found), rel=1e-4)


def test_the_size_of_a_random_model_is_checked(tiny_size):
    assert load_model(ModelChoice(size=tiny_size), "cpu").model.config.num_hidden_layers == 5
    wrong = {
        "choose llama-8b or qwen-4b": ModelChoice(size="huge"),
        "layers=2 is for a model of a known size": ModelChoice(layers=2),
        "hybrid=True is for the small": ModelChoice(size=tiny_size, hybrid=True),
        "not loaded in 4 bit": ModelChoice(load_in_4bit=True),
        "size='tiny' with layers=3 is for a random model": ModelChoice("elsewhere", size=tiny_size, layers=3),
    }
    for message, choice in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_model(choice, "cpu")


@pytest.mark.slow
def test_no_shape_starts_after_the_time_limit():
    settings = BenchSettings(shapes=[Shape(8, 4, 1)] * 2, groups=1, steps=1, rounds=3, only="mrt", time_limit=1e-6)
    assert run_bench(settings).shapes == []
    (first, second) = run_bench(replace(settings, time_limit=600.0, rounds=1)).shapes
    assert [len(arm.step_seconds) for arm in (*first.arms, *second.arms)] == [1] * 4


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
    assert table.stdout.startswith("mrt shared sdpa trains ")
    assert "token ratio 1.00" in table.stdout
    for shape, title in (("20,8,4,1", "S 20, P 8, R 4, K 1"), ("2x8,4,2", "T 2, U 8, H 4, A 2")):
        found = runner.invoke(app, ["bench", "--shape", shape, "--groups", "2", "--steps", "1", "--rounds", "1"])
        assert found.exit_code == 0, found.output
        assert f"{title}: token ratio" in found.stdout
    for wrong in (["--shape", "8,4"], ["--dtype", "int3"], ["--load-in-4bit"], ["--size", "huge"], ["--layers", "2"]):
        failed = runner.invoke(app, ["bench", *wrong])
        assert failed.exit_code == 1
        assert "error: " in failed.stderr


@pytest.mark.slow
def test_only_some_arms():
    settings = BenchSettings(shapes=[Shape(8, 4, 1)], only="mrt", groups=1, steps=1, rounds=1)
    (shape,) = run_bench(settings).shapes
    assert [arm.name for arm in shape.arms] == ["mrt expanded", "mrt shared sdpa"]
    assert all(arm.speedup is None and arm.error is None for arm in shape.arms)
    with pytest.raises(ValueError, match="no trainer"):
        run_bench(replace(settings, only="trlx"))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_hybrid_model_is_forked(checkpointing):
    """Several groups at a time, with and without gradient checkpointing: the same training as expanded."""
    settings = BenchSettings(
        shapes=[Shape(12, 4, 2)],
        model=ModelChoice(hybrid=True),
        only="mrt",
        gradient_checkpointing=checkpointing,
        steps=1,
        rounds=1,
    )
    (shape,) = run_bench(settings).shapes
    expanded, shared = shape.arms
    assert (expanded.name, shared.name) == ("mrt expanded", "mrt shared fork")
    assert shared.loss == pytest.approx(expanded.loss, rel=1e-5)
    assert shared.gradient_norm == pytest.approx(expanded.gradient_norm, rel=1e-4)
    with pytest.raises(ValueError, match="hybrid=True"):
        load_model(ModelChoice("elsewhere", hybrid=True), "cpu")


def test_a_plot_of_arms_that_could_not_run(tmp_path):
    arms = [ArmResult("a", True, speedup=1.0), ArmResult("b", False, error="no")]
    shape = ShapeResult(Shape(8, 4, 2), 1.3, arms, None)
    plot(BenchResult({"device": "test"}, {"objective": "nll"}, [shape]), tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 5000


def result_of(*shapes):
    """A result with made-up speed-ups: the shape, its token ratio, and the speed-up of each arm."""
    names = ("trl nll", "trl packed", "mrt expanded", "mrt shared sdpa", "mrt shared fork")
    made = []
    for text, ratio, speedups in shapes:
        arms = [
            ArmResult(name, name.startswith("trl"), speedup=speedup, error=None if speedup else "no")
            for name, speedup in zip(names, speedups, strict=True)
        ]
        made.append(ShapeResult(parse_shape(text), ratio, arms, None))
    return BenchResult({"device": "test"}, {"objective": "nll"}, made)


FAST = ("1024,64,8", 6.1, (1.0, 0.9, 0.95, 5.4, 5.2))
SLOW = ("256,128,1", 1.0, (1.0, 0.9, 0.95, 0.97, None))


def test_the_headline_of_a_benchmark_names_the_best_shape_and_counts_the_slow_ones():
    best = "mrt shared sdpa trains 5.4 times as many pairs per second as TRL's fastest mode at P 1024, R 64, K 8"
    assert headline(result_of(FAST)) == f"{best}."
    assert headline(result_of(FAST, FAST)) == f"{best}, its best of 2 shapes."
    assert headline(result_of(FAST, SLOW)) == f"{best}, its best of 2 shapes, and is slower at 1 of them."
    assert headline(result_of(SLOW)).startswith("mrt shared sdpa trains 0.97 times as many")
    none = ("8,4,2", 1.3, (1.0, None, 0.9, None, None))
    assert headline(result_of(none)).startswith("No shared prompt ran")
    other = replace(result_of(FAST), settings={"objective": "gem"})
    assert "as the expanded layout at" in headline(other)


@pytest.mark.parametrize("shapes", [[FAST], [SLOW], [FAST, SLOW] * 3])
def test_the_legend_and_the_texts_of_the_picture_are_clear_of_its_lines(shapes):
    made = picture(result_of(*shapes))
    made.draw_without_rendering()
    (axis,), (legend,) = made.axes, made.legends
    ratios = [collection.get_paths()[0].get_extents(axis.transData) for collection in axis.collections]
    bars = [bar.get_window_extent() for bar in axis.patches]
    lines = [line.get_path().get_extents(line.get_transform()) for line in axis.lines]
    assert len(ratios) == len(shapes)
    assert len(lines) == 1
    texts = [*axis.texts, *axis.get_yticklabels(), made._suptitle, axis.xaxis.label]
    boxes = [legend.get_window_extent(), *(text.get_window_extent() for text in texts)]
    for box in boxes:
        assert not any(box.overlaps(drawn) for drawn in (*ratios, *bars, *lines))
        assert made.bbox.x0 <= box.x0 <= box.x1 <= made.bbox.x1
        assert made.bbox.y0 <= box.y0 <= box.y1 <= made.bbox.y1
    assert {text.get_text() for text in axis.texts} >= {"0.97" if shapes == [SLOW] else "5.40"}


@pytest.mark.slow
def test_a_tree_needs_the_memory_of_a_row_of_as_many_tokens():
    found = compare(ModelChoice(), "cpu", (400, 16, 16, 4, 4), gradient_checkpointing=False)
    assert found["tokens"] == 399 + 4 * (16 + 4 * 17)
    (_, tree), *others = found["rows"].values()
    assert len(others) == 4
    assert tree < 1.25 * min(step for _, step in others)
