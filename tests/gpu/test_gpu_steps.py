"""Complete optimizer steps of the trainers on a GPU: QLoRA with checkpointing, and peak memory."""

import gc

import pytest
import torch

from mrt_plugin.bench.model import ModelChoice, load_model, sized_config
from mrt_plugin.bench.probes import PeakMemory
from mrt_plugin.bench.shapes import Shape, draw_groups
from mrt_plugin.bench.turn import all_arms, make_data, take_turn
from mrt_plugin.doctor.memory import GIB, Method, estimate_memory
from mrt_plugin.layout.group_row import build_group_row, sequences_of
from mrt_plugin.layout.tree import build_tree

pytestmark = pytest.mark.gpu
LAYERS = 2


@pytest.fixture(scope="module", params=["llama-8b", "qwen-4b"])
def setting(request):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("bitsandbytes")
    choice = ModelChoice(size=request.param, layers=LAYERS, dtype="bfloat16", load_in_4bit=True)
    yield request.param, load_model(choice, "cuda", gradient_checkpointing=True)
    gc.collect()
    torch.cuda.empty_cache()


def test_qlora_with_checkpointing_trains_the_same_in_every_arm(setting, record):
    size, trained = setting
    shape = Shape(256, 64, 4)
    groups = draw_groups(shape, 2, trained.model.config.vocab_size)
    data = make_data(groups, 1)
    found = {}
    for arm in all_arms(["sdpa"]):
        turn = take_turn(arm, trained, data, arm.sizes(shape.k, 1)[-1], steps=2)
        found[arm.name] = (turn.loss, turn.gradient_norm)
    record(size=size, steps=found)
    first = found.pop(next(iter(found)))
    for name, values in found.items():
        assert values == pytest.approx(first, rel=2e-2), name


def test_peak_memory_is_what_doctor_estimates(setting, record):
    size, trained = setting
    shape = Shape(1024, 256, 8)
    groups = draw_groups(shape, 2, trained.model.config.vocab_size)
    length = len(build_tree(sequences_of(build_group_row(groups[1]))).input_ids)
    probe = PeakMemory()
    take_turn(all_arms(["sdpa"])[-1], trained, make_data(groups, 1), 1, steps=2, probe=probe)
    measured = (probe.resting + probe.step) / GIB
    method = Method(bits=4, lora_rank=16, gradient_checkpointing=True)
    estimate = estimate_memory(sized_config(size, LAYERS), method, rows=1, length=length)
    record(size=size, tokens=length, measured_gib=measured, estimated_gib=estimate.total)
    assert measured == pytest.approx(estimate.total, rel=0.25)
