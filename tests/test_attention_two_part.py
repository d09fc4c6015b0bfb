"""The sdpa backend in the settings that people train in, and its operator by itself."""

import copy
from typing import Any

import pytest
import torch
from helpers.families import (
    PAD,
    VOCABULARY,
    WINDOW,
    assert_equivalent,
    build,
    gradient,
    one_by_one,
    plain_compute,
    random_group,
    rows_loss,
)
from helpers.trees import deep_rows, random_forest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, Gemma3ForConditionalGeneration

from mrt_plugin.attention import NotShareable, prove
from mrt_plugin.attention.fork import ForkBackend
from mrt_plugin.attention.kernels import CPUFlash, Explicit
from mrt_plugin.attention.masks import DenseBackend, visible
from mrt_plugin.attention.plan import find_runs, pieces
from mrt_plugin.attention.shared_attention import shared_attention
from mrt_plugin.attention.two_part import RowPlan, TwoPartBackend
from mrt_plugin.layout.rows import Rows, build_rows

PACKED = [[random_group(17, [3, 15, 1]), random_group(2, [4])], [random_group(20, [2, 9])], *deep_rows()]
GROUPS = [group for row in PACKED for group in row]


def prepared(model: Any) -> TwoPartBackend:
    backend = TwoPartBackend(model.config)
    backend.prepare_model(model)
    return backend


# ---------------------------------------------------------------- any groups, any packing


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_groups_in_any_packing(data: st.DataObject) -> None:
    group = st.builds(
        lambda prompt, lengths, seed: random_group(prompt, lengths, seed),
        st.integers(1, 30),
        st.lists(st.integers(1, 20), min_size=1, max_size=8) | st.lists(st.integers(1, 3), min_size=1, max_size=32),
        st.integers(0, 9),
    )
    packed = data.draw(st.lists(st.lists(group, min_size=1, max_size=3), min_size=1, max_size=3))
    name = data.draw(st.sampled_from(["llama", "gemma3", "gpt_oss"]))
    backend = data.draw(st.sampled_from([TwoPartBackend, DenseBackend]))
    assert_equivalent(backend(build(name).config), name, packed)


# ---------------------------------------------------------------- the operator


def reference(rows: Rows, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, **options: Any) -> Any:
    """The same attention under a dense mask, in plain arithmetic."""
    copies = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(copies, 1), v.repeat_interleave(copies, 1)
    scores = q @ k.mT * scale
    if options.get("softcap"):
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    scores = scores.masked_fill(~visible(rows, window=options.get("window")), -torch.inf)
    if options.get("sink") is not None:
        scores = torch.cat([scores, options["sink"][:, None, None].expand(*scores.shape[:-1], 1)], -1)
    out = scores.softmax(-1)[..., : k.shape[-2]] @ v
    return out.transpose(1, 2) * rows.attention_mask[..., None, None]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("options", [{}, {"window": 4}, {"window": 1}, {"softcap": 0.7}, {"sink": True}])
@pytest.mark.parametrize("strided", [False, True])
def test_operator_and_its_gradient(heads: tuple[int, int], options: dict[str, Any], strided: bool) -> None:
    torch.manual_seed(0)
    packed = [[random_group(9, [3, 7, 1]), random_group(4, [6])], [random_group(1, [5, 2])]]
    rows = build_rows([*packed, random_forest(56, depth=6, fan_out=8, most=10)], PAD)
    count, width = rows.input_ids.shape

    def draw(heads: int) -> torch.Tensor:
        if strided:
            return torch.randn(count, width, heads, 8).transpose(1, 2).requires_grad_()
        return torch.randn(count, heads, width, 8).requires_grad_()

    q, k, v = draw(heads[0]), draw(heads[1]), draw(heads[1])
    sink = torch.randn(heads[0], requires_grad=True) if "sink" in options else None
    window = options.get("window")
    plan = RowPlan(rows, window)
    given = {"window": window, "softcap": options.get("softcap"), "sink": sink}
    planned, window = plan.of(window)
    found = shared_attention(q, k, v, planned, scale=0.6, **{**given, "window": window})
    expected = reference(rows, q, k, v, 0.6, **given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    inputs = [q, k, v] if sink is None else [q, k, v, sink]
    grad = torch.randn_like(expected) * rows.attention_mask[..., None, None]
    for one, other in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 100, 700])
def test_long_runs(window: int | None) -> None:
    """Runs that the plan halves, or cuts into blocks of a window."""
    torch.manual_seed(0)
    rows = build_rows([[random_group(400, [170, 5]), random_group(1, [340])]], PAD)
    width = rows.input_ids.shape[1]
    q, k, v = (torch.randn(1, heads, width, 8, requires_grad=True) for heads in (2, 1, 1))
    plan = RowPlan(rows, window)
    expected = reference(rows, q, k, v, 0.6, window=window)
    planned, window = plan.of(window)
    assert len(planned[0]) > 6
    found = shared_attention(q, k, v, planned, scale=0.6, window=window)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_operator_is_well_behaved() -> None:
    rows = build_rows([[random_group(5, [3, 2])]], PAD)
    width = rows.input_ids.shape[1]
    q, k, v = (torch.randn(1, heads, width, 4, requires_grad=True) for heads in (2, 1, 1))
    arguments = (q, k, v, RowPlan(rows, None).full, 0.5, 0, 0.0, torch.randn(2, requires_grad=True))
    torch.library.opcheck(torch.ops.mrt_plugin.shared_attention.default, arguments)


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_explicit_kernel_in_blocks(softcap: float | None) -> None:
    """Its blocks of queries add up, in fp64 terms of autograd's own gradient."""
    torch.manual_seed(0)
    kernel = Explicit(0.3, softcap)
    kernel.block = 7
    q, k, v = (torch.randn(1, heads, 20, 5, requires_grad=True) for heads in (4, 2, 2))
    out, lse = kernel.forward(q, k, v, causal=True, seen=None)
    whole = Explicit(0.3, softcap).forward(q, k, v, causal=True, seen=None)
    torch.testing.assert_close((out, lse), whole)
    grad = torch.randn_like(out)
    found = kernel.backward(grad, q, k, v, out, lse, causal=True, seen=None)
    torch.testing.assert_close(found, torch.autograd.grad(whole[0], (q, k, v), grad), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_and_explicit_kernels_agree(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(1, heads, 40, 16, dtype=dtype) for heads in (4, 2, 2, 4))
    seen = torch.ones(40, 40, dtype=torch.bool).tril()
    results = []
    for kernel in (CPUFlash(0.25), Explicit(0.25, None)):
        for arguments in ({"causal": True, "seen": None}, {"causal": False, "seen": seen}):
            out, lse = kernel.forward(q, k, v, **arguments)
            results.append((out, lse.float(), *kernel.backward(grad, q, k, v, out, lse, **arguments)))
    for other in results[1:]:
        torch.testing.assert_close(
            results[0], other, rtol=20 * torch.finfo(dtype).eps, atol=40 * torch.finfo(dtype).eps
        )


def test_types_must_agree() -> None:
    q, plan = torch.randn(1, 2, 6, 4), RowPlan(build_rows([[random_group(2, [4])]], PAD), None)
    with pytest.raises(TypeError, match="autocast"):
        shared_attention(q, q, q.bfloat16(), plan.full, scale=1.0)


# ---------------------------------------------------------------- the plan


def test_a_window_that_no_position_reaches_changes_nothing() -> None:
    plan = RowPlan(build_rows([[random_group(8, [5, 2])]], PAD), 13)
    assert plan.of(13) == (plan.full, None)
    plan = RowPlan(build_rows([[random_group(8, [5, 2])]], PAD), 12)
    assert plan.of(12)[1] == 12
    assert plan.of(None) == (plan.full, None)


def test_a_group_of_one_response_is_one_ordinary_sequence() -> None:
    [piece] = pieces(find_runs(build_rows([[random_group(8, [5])]], PAD)))
    assert (piece.queries, piece.keys, piece.own) == (13, 13, True)


def test_pairs_without_a_shared_prefix_have_no_second_part() -> None:
    found = pieces(find_runs(build_rows([[random_group(1, [5, 3]), random_group(1, [4])]], PAD)))
    assert [piece.queries for piece in found] == [6, 4, 5]
    assert all(piece.own for piece in found)


def test_prompt_keys_are_read_once_for_all_segments() -> None:
    found = pieces(find_runs(build_rows([[random_group(50, [5, 3, 9])]], PAD)))
    assert [(piece.queries, piece.keys) for piece in found if not piece.own] == [(6 + 4 + 10, 49)]


def test_a_window_bounds_the_work() -> None:
    group = random_group(2000, [30, 30])
    area = sum(piece.queries * piece.keys for piece in pieces(find_runs(build_rows([[group]], PAD)), window=64))
    assert area < 2100 * 3 * 64


# ---------------------------------------------------------------- how people train


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "gemma2", "gpt2"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(name: str, use_reentrant: bool) -> None:
    model = build(name)
    backend = prepared(model)
    rows = build_rows(PACKED, PAD)
    reference = build(name, attn_implementation="eager")
    expected = gradient(reference, lambda: one_by_one(reference, GROUPS))
    plain = gradient(model, lambda: rows_loss(backend, model, rows))
    checkpoint(model, use_reentrant)
    found = gradient(model, lambda: rows_loss(backend, model, rows))
    torch.testing.assert_close(found, plain)
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    reference = build(name)
    expected, expected_gradient = gradient(reference, lambda: one_by_one(reference, GROUPS))
    model = build(name)
    backend, rows = prepared(model), build_rows(PACKED, PAD)
    with torch.autocast("cpu", dtype):
        found, found_gradient = gradient(model, lambda: rows_loss(backend, model, rows))
        plain, plain_gradient = gradient(reference, lambda: one_by_one(reference, GROUPS))
    assert abs(found / expected - 1) < 2 * abs(plain / expected - 1) + 1e-3
    own_error = (plain_gradient - expected_gradient).norm()
    assert (found_gradient - expected_gradient).norm() < 1.5 * own_error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    reference = build("llama").to(dtype)
    exact = copy.deepcopy(reference).float()
    _, expected = gradient(exact, lambda: one_by_one(exact, GROUPS))
    _, plain = gradient(reference, lambda: one_by_one(reference, GROUPS))
    model = build("llama").to(dtype)
    backend, rows = prepared(model), build_rows(PACKED, PAD)
    _, found = gradient(model, lambda: rows_loss(backend, model, rows))
    assert (found - expected).norm() < 1.5 * (plain - expected).norm()


def checkpoint(model: Any, use_reentrant: bool | None) -> None:
    """Recompute the layers of a model in the backward pass; None changes nothing."""
    if use_reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.enable_input_require_grads()


def assert_same(found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert abs(found[0] / expected[0] - 1) < 1e-5
    assert (found[1] - expected[1]).norm() < 1e-4 * expected[1].norm()


TRAINED = [(TwoPartBackend, None), (TwoPartBackend, True), (TwoPartBackend, False), (DenseBackend, True)]
TRAINED += [(ForkBackend, None)]
"""Backends, and the kind of gradient checkpointing; the fork refuses any."""


@pytest.mark.parametrize(("make_backend", "use_reentrant"), TRAINED)
def test_lora(make_backend: Any, use_reentrant: bool | None) -> None:
    def adapted() -> Any:
        torch.manual_seed(1)
        return get_peft_model(build("qwen3"), LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"))

    reference, model = adapted(), adapted()
    expected = gradient(reference, lambda: one_by_one(reference, GROUPS))
    backend, rows = make_backend(model.config), build_rows(PACKED, PAD)
    backend.prepare_model(model)
    checkpoint(model, use_reentrant)
    assert_same(gradient(model, lambda: rows_loss(backend, model, rows)), expected)


@pytest.mark.parametrize(("make_backend", "use_reentrant"), TRAINED)
def test_qlora(tmp_path: Any, make_backend: Any, use_reentrant: bool | None) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    build("llama", **wide).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )

    def adapted() -> Any:
        model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, dtype=torch.float32)
        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")).train()

    reference, model = adapted(), adapted()
    expected = gradient(reference, lambda: one_by_one(reference, GROUPS))
    backend, rows = make_backend(model.config), build_rows(PACKED, PAD)
    backend.prepare_model(model)
    prove(model, backend, GROUPS[0])
    checkpoint(model, use_reentrant)
    assert_same(gradient(model, lambda: rows_loss(backend, model, rows)), expected)


@pytest.mark.slow
def test_compile_builds_no_graph_per_shape() -> None:
    """By torch's default, which is a Trainer's: the first shape by itself, the second as any shape."""
    torch._dynamo.reset()
    model = build("gemma3")
    backend = prepared(model)
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=count)
    for prompt, lengths in [(20, [5, 9]), (31, [12, 4, 7]), (16, [11]), (45, [2, 3, 4, 20]), (23, [9, 9])]:
        packed = [[random_group(prompt, lengths), random_group(prompt // 2, lengths[:1])]]
        rows = build_rows(packed, PAD)
        expected = gradient(model, lambda rows=rows: rows_loss(backend, model, rows))
        nll = gradient(
            model,
            lambda rows=rows: (backend.token_nll(model, rows, plain_compute(compiled)) * rows.loss_weights).sum(),
        )
        torch.testing.assert_close(nll, expected, rtol=1e-4, atol=1e-5)
        if prompt == 31:
            after_two = len(graphs)
    assert len(graphs) <= after_two + 1


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_router_logits_may_be_asked_for(name: str) -> None:
    model = build(name, output_router_logits=True)
    backend = prepared(model)
    rows = build_rows(PACKED, PAD)
    plain = build(name)
    expected = rows_loss(prepared(plain), plain, rows)
    torch.testing.assert_close(rows_loss(backend, model, rows), expected)


# ---------------------------------------------------------------- a prepared model, used otherwise


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_oss", "gpt2"])
def test_ordinary_forwards_still_hold(name: str) -> None:
    """A user's own forward and generation through a prepared model are those of the plain model, padding included."""
    plain, model = build(name, attn_implementation="eager").eval(), build(name).eval()
    prepared(model)
    torch.manual_seed(0)
    tokens = torch.randint(3, VOCABULARY, (2, 3 * WINDOW))
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    kwargs = {"attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens, **kwargs).logits[mask.bool()],
            plain(tokens, **kwargs).logits[mask.bool()],
            rtol=1e-4,
            atol=1e-4,
        )
        torch.testing.assert_close(model(tokens).logits, plain(tokens).logits, rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}
    assert torch.equal(
        model.generate(tokens, attention_mask=mask, **options), plain.generate(tokens, attention_mask=mask, **options)
    )


def test_attention_dropout_is_refused_at_run_time() -> None:
    model = build("llama")
    backend = prepared(model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    rows = build_rows(PACKED, PAD)
    with pytest.raises(NotShareable, match=r"Attention dropout of 0\.1 is on"):
        rows_loss(backend, model, rows)


def test_the_vision_tower_of_a_composite_model_keeps_its_attention() -> None:
    text = build("gemma3").config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config={**vision, "image_size": 16, "patch_size": 8}, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).train()
    backend = TwoPartBackend(model.config)
    rows = build_rows(PACKED, PAD)
    model.set_attn_implementation("eager")
    expected = one_by_one(model, GROUPS)
    backend.prepare_model(model)
    assert model.config.vision_config._attn_implementation == "eager"
    assert abs(rows_loss(backend, model, rows) / expected - 1) < 1e-5
    prove(model, backend, GROUPS[0])
