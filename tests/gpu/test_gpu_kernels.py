"""CUDA's FlashAttention against plain arithmetic, and the backends against one pair at a time."""

import copy
import types

import pytest
import torch
from helpers.families import PAD, build, plain_compute, random_group
from helpers.half_precision import CASES, Case, check
from helpers.trees import deep_rows

from mrt_plugin.attention import prove
from mrt_plugin.attention.backend import ExpandedBackend
from mrt_plugin.attention.fork import ForkBackend
from mrt_plugin.attention.masks import DenseBackend, FlexBackend
from mrt_plugin.attention.plain import on_device
from mrt_plugin.attention.two_part import TwoPartBackend
from mrt_plugin.attention.varlen import CUDAFlash
from mrt_plugin.layout.group_row import expand
from mrt_plugin.layout.rows import build_rows

pytestmark = pytest.mark.gpu
PACKED = [[random_group(17, [3, 15, 1]), random_group(2, [4])], [random_group(20, [2, 9])], *deep_rows()]
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}


def loss_and_gradient(model, backend, rows):
    model.zero_grad(set_to_none=True)
    nll = backend.token_nll(model, on_device(rows, model), plain_compute(model))
    loss = (nll * rows.loss_weights.to(nll.device)).sum()
    loss.backward()
    gradients = [weight.grad.double().flatten() for weight in model.parameters() if weight.grad is not None]
    return float(loss), torch.cat(gradients)


def one_pair_per_row(packed):
    return build_rows([[pair] for row in packed for group in row for pair in expand(group)], PAD)


def expanded(model, packed):
    """The loss and gradient of a copy of the model, one pair per row."""
    return loss_and_gradient(copy.deepcopy(model), ExpandedBackend(), one_pair_per_row(packed))


def differences(model, backend, packed, reference):
    """The relative differences of loss and gradient, shared against those of one pair per row."""
    expected, expected_gradient = reference
    backend.prepare_model(model)
    found, gradient = loss_and_gradient(model, backend, build_rows(packed, PAD))
    return abs(found / expected - 1), float((gradient - expected_gradient).norm() / expected_gradient.norm())


def assert_no_worse(found, ordinary):
    """The differences with other kernels are those without them, which come from rounding, times three at most."""
    for ours, theirs, floor in zip(found, ordinary, (1e-5, 1e-4), strict=True):
        assert ours <= 3 * theirs + floor, (found, ordinary)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_flash_attention(case: Case, cuda, record):
    query = torch.empty(1, 1, 1, case.size, dtype=case.dtype, device=cuda)
    if not CUDAFlash.takes(query, query, 0.0):
        pytest.skip(f"this card has no backward pass for heads of {case.size}")
    record(errors=check(case, cuda))


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral-window", "gemma3", "gpt_oss", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_proof_of_sdpa(name, dtype, cuda, record):
    model = build(name, head_dim=64).to(cuda, dtype)
    proof = prove(model, TwoPartBackend(model.config), PACKED[0][0])
    record(nll=proof.nll_difference, tolerance=proof.nll_tolerance, gradient=proof.gradient_difference)


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next", "mamba2"])
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["kept", "recomputed", "reentrant"])
def test_the_fork(name, checkpointing, cuda, record):
    model = build(name).to(cuda)
    plain = expanded(model, PACKED[:2])
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    loss, gradient = differences(model, ForkBackend(model.config), PACKED[:2], plain)
    record(loss=loss, gradient=gradient)
    assert loss < 1e-5
    assert gradient < 2e-4


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral-window"])
def test_flex_against_dense(name, cuda, record):
    model = build(name, **WIDE).to(cuda)
    loss, gradient = differences(model, FlexBackend(model.config), PACKED, expanded(model, PACKED))
    record(loss=loss, gradient=gradient)
    assert loss < 1e-4
    assert gradient < 1e-3


def test_flex_compiles_no_more_for_other_lengths(cuda, record):
    from torch._dynamo.utils import counters

    model = build("llama", **WIDE).to(cuda)
    dense = copy.deepcopy(model)
    backend, reference = FlexBackend(model.config), DenseBackend(dense.config)
    backend.prepare_model(model)
    reference.prepare_model(dense)
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for number in range(1, 13):
        rows = build_rows([[random_group(128 * number, [30 + number, 41])]], PAD)
        found, gradient = loss_and_gradient(model, backend, rows)
        expected, expected_gradient = loss_and_gradient(dense, reference, rows)
        assert found == pytest.approx(expected, rel=1e-4)
        assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()
        graphs.append(counters["stats"]["unique_graphs"])
    record(graphs=graphs)
    assert graphs[1] == graphs[-1], "ten lengths after the second one"


def lora(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_lora_kernels_of_axolotl_under_the_proof(dtype, cuda, record):
    """The Triton kernel of the MLP, which needs a GPU. Those of the projections are tested on a CPU."""
    kernels = pytest.importorskip("axolotl.kernels.lora")
    model = lora(build("llama", **WIDE)).to(cuda, dtype)
    plain = expanded(model, PACKED)
    backend = TwoPartBackend(model.config)
    ordinary = differences(copy.deepcopy(model), backend, PACKED, plain)
    for layer in model.get_base_model().model.layers:
        layer.mlp.forward = types.MethodType(kernels.apply_lora_mlp_swiglu, layer.mlp)
    proof = prove(model, backend, PACKED[0][0])
    found = differences(model, backend, PACKED, plain)
    record(found=found, ordinary=ordinary, nll=proof.nll_difference, tolerance=proof.nll_tolerance)
    assert_no_worse(found, ordinary)


def test_the_kernels_of_liger_under_the_proof(cuda, record):
    """Last in this file: Liger replaces functions of transformers' Llama for the rest of the process."""
    liger = pytest.importorskip("liger_kernel.transformers")
    models = {dtype: build("llama", **WIDE).to(cuda, dtype) for dtype in (torch.float32, torch.bfloat16)}
    plain = {dtype: expanded(model, PACKED) for dtype, model in models.items()}
    backend = TwoPartBackend(models[torch.float32].config)
    ordinary = {
        dtype: differences(copy.deepcopy(model), backend, PACKED, plain[dtype]) for dtype, model in models.items()
    }
    for dtype, model in models.items():
        liger.apply_liger_kernel_to_llama(model=model)
        proof = prove(model, backend, PACKED[0][0])
        found = differences(model, backend, PACKED, plain[dtype])
        record(found=found, ordinary=ordinary[dtype], nll=proof.nll_difference, tolerance=proof.nll_tolerance)
        assert_no_worse(found, ordinary[dtype])
