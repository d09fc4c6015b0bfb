"""Every call of a CUDA kernel, without a GPU: on meta tensors, and against the schemas of torch 2.11 to 2.15.

A meta tensor stands for one on a GPU: it has a shape, strides, a type and a device of its own. Whether the kernels
compute the right numbers, `make test-gpu` shows on a GPU. `tests/helpers/record_schemas.py` recorded the schemas.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import PAD, random_group
from helpers.trees import deep_rows
from torch._dynamo.utils import counters
from torch.fx.operator_schemas import _torchscript_schema_to_signature as signature_of
from torch.fx.operator_schemas import type_matches
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from mrt_plugin.attention.masks import BLOCK, visibility
from mrt_plugin.attention.plan import find_runs
from mrt_plugin.attention.shared_attention import shared_attention
from mrt_plugin.attention.varlen import Call, CUDAFlash, calls, varlen_backward, varlen_forward
from mrt_plugin.layout.rows import build_rows

SCHEMAS: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "data" / "operator_schemas.json").read_text(encoding="utf-8")
)
FORWARD, BACKWARD = "_flash_attention_forward", "_flash_attention_backward"
PACKED = [[random_group(17, [3, 15, 1]), random_group(2, [4])], [random_group(20, [2, 9])], *deep_rows()]


def schema_of(release: str, name: str) -> Any:
    (text,) = (text for text in SCHEMAS[release] if text.startswith(f"{name}("))
    return torch._C.parse_schema(f"aten::{text}")


class Recorder:
    """Stands for an operator: records the arguments as they are written, and calls the operator."""

    def __init__(self, name: str) -> None:
        self.operator, self.calls = getattr(torch.ops.aten, name), list[tuple[Any, Any, Any]]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.operator(*args, **kwargs)
        self.calls.append((args, kwargs, result))
        return result


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    found = {name: Recorder(name) for name in (FORWARD, BACKWARD)}
    for name, recorder in found.items():
        monkeypatch.setattr(torch.ops.aten, name, recorder)
    return found


def run_kernels(dtype: torch.dtype, size: int, window: int | None) -> list[Call]:
    """Plan rows on the CPU, and run the forward and the backward of the kernels on meta tensors."""
    heads, groups = 4, 2
    rows = build_rows(PACKED, PAD)
    count, width = rows.input_ids.shape
    planned = calls(find_runs(rows), width, torch.device("cpu"), window)
    there = [Call(*call[:3], *(index.to("meta") for index in call[3:])) for call in planned]
    # As transformers makes them: [R, T, H, D] transposed.
    q, k, v = (
        torch.empty(count, width, n, size, dtype=dtype, device="meta").transpose(1, 2) for n in (heads, groups, groups)
    )
    kernel = CUDAFlash(0.1)
    out, lse = varlen_forward(kernel, q, k, v, there, window)
    assert (out.shape, out.dtype, out.device) == ((count, width, heads, size), dtype, q.device)
    assert (lse.shape, lse.dtype, lse.device) == ((count, heads, width), torch.float32, q.device)
    found = varlen_backward(kernel, torch.empty_like(out), q, k, v, out, lse, there, window)
    for gradient, tensor in zip(found, (q, k, v), strict=True):
        assert gradient.shape == tensor.shape
        assert gradient.stride() == tensor.stride()
        assert (gradient.dtype, gradient.device) == (dtype, tensor.device)
    return planned


@pytest.mark.parametrize("release", SCHEMAS)
@pytest.mark.parametrize("window", [None, 9])
def test_the_calls_bind_to_the_schemas(release: str, window: int | None, recorded: dict[str, Recorder]) -> None:
    run_kernels(torch.bfloat16, 64, window)
    used = {FORWARD: 2, BACKWARD: 3}  # results
    for name, recorder in recorded.items():
        schema = schema_of(release, name)
        signature = signature_of(schema)
        expected = {argument.name: argument.type for argument in schema.arguments}
        for args, kwargs, _ in recorder.calls:
            bound = signature.bind(*args, **kwargs).arguments
            for argument, value in bound.items():
                kind = torch.Tensor if isinstance(value, torch.Tensor) else type(value)
                assert type_matches(signature.parameters[argument].annotation, kind), (argument, expected[argument])
            assert {"query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "scale"} <= set(bound)
        assert len(schema.returns) >= used[name]
        assert all(str(result.type) == "Tensor" for result in schema.returns[: used[name]])


def test_a_call_with_other_arguments_does_not_bind() -> None:
    signature = signature_of(schema_of("2.15.0", FORWARD))
    with pytest.raises(TypeError, match="too many positional"):
        signature.bind(*range(11))
    assert not type_matches(signature.parameters["max_q"].annotation, torch.Tensor)


@pytest.mark.parametrize("place", range(4))
def test_the_recorded_schemas_are_those_of_the_installed_torch(place: int) -> None:
    minor = torch.__version__.rpartition("+")[0] or torch.__version__
    release = next((known for known in SCHEMAS if known.split(".")[:2] == minor.split(".")[:2]), None)
    if release is None:
        pytest.skip(f"torch {torch.__version__} is not recorded: see tests/helpers/record_schemas.py")
    name = SCHEMAS[release][place].partition("(")[0]
    assert getattr(torch.ops.aten, name).default._schema == schema_of(release, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [64, 96, 128, 256])
@pytest.mark.parametrize("window", [None, 9])
def test_the_kernels_get_what_they_demand(
    dtype: torch.dtype, size: int, window: int | None, recorded: dict[str, Recorder]
) -> None:
    """The checks of PyTorch's flash_api.cpp (mha_varlen_fwd, mha_varlen_bwd), which fake kernels do not make."""
    planned = run_kernels(dtype, size, window)
    (forward, backward) = recorded[FORWARD].calls, recorded[BACKWARD].calls
    assert len(forward) == len(backward) == len(planned) == (1 if window else 7)
    for call, (args, kwargs, result) in zip(planned, forward, strict=True):
        _check(call, args[:3], args[3:7], kwargs)
        assert result[0].shape == args[0].shape
        assert (result[1].shape, result[1].dtype) == ((args[0].shape[1], args[0].shape[0]), torch.float32)
    for call, (args, kwargs, result) in zip(planned, backward, strict=True):
        grad, *inputs, out, lse = args[:6]
        _check(call, inputs, args[6:10], kwargs)
        assert grad.shape == out.shape == inputs[0].shape
        assert grad.dtype == out.dtype == dtype
        assert grad.stride(-1) == out.stride(-1) == 1
        assert (lse.shape, lse.dtype) == ((out.shape[1], out.shape[0]), torch.float32)
        assert lse.is_contiguous()
        assert [(x.dtype, x.device.type) for x in args[12:14]] == [(torch.uint64, "meta"), (torch.float32, "meta")]
        assert [x.shape for x in result] == [x.shape for x in inputs]


def _check(call: Call, inputs: Any, lengths: Any, kwargs: dict[str, Any]) -> None:
    query, key, value = inputs
    assert len({x.dtype for x in inputs}) == 1
    assert all(x.is_meta and x.dim() == 3 and x.stride(-1) == 1 for x in inputs)
    assert query.shape[2] == key.shape[2] == value.shape[2]
    assert query.shape[2] % 8 == 0
    assert query.shape[1] % key.shape[1] == 0
    *ends, longest_query, longest_key = lengths
    # The numbers are those of the plan, which is real.
    for found, real, longest, tokens in zip(
        ends, (call.query_ends, call.key_ends), (longest_query, longest_key), (query, key), strict=True
    ):
        assert found.is_meta
        assert found.dtype == torch.int32
        assert found.is_contiguous()
        assert real[0] == 0
        assert real[-1] == tokens.shape[0]
        assert int(real.diff().min()) > 0
        assert int(real.diff().max()) == longest
    assert set(kwargs) - {"return_debug_mask", "scale", "window_size_left", "window_size_right"} == set()


@pytest.mark.parametrize("window", [None, 200])
def test_flex_compiles_at_two_lengths_and_no_more(window: int | None) -> None:
    """The graphs of the mask and of the attention, with a backend that only counts them: ten lengths."""
    compiled = partial(torch.compile, backend="eager")
    create, attend = compiled(create_block_mask), compiled(flex_attention)
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for number in range(1, 11):
        rows = build_rows([[random_group(128 * number, [30 + number, 41])]], PAD, pad_to_multiple_of=BLOCK)
        count, width = rows.ends.shape
        mask = create(visibility(rows, window=window), count, None, width, width, device="cpu")
        attend(*(torch.randn(count, heads, width, 16) for heads in (4, 2, 2)), block_mask=mask, enable_gqa=True)
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs[0] == 2
    assert graphs[1] == graphs[-1] <= 4


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_operator_under_autograd(sink: bool, checkpointing: bool) -> None:
    """Shapes, types and devices of the operator and its gradients. The plan's table is on the CPU, the rest is not."""
    make = partial(torch.empty, dtype=torch.bfloat16, device="meta", requires_grad=True)
    q, k, v = make(2, 4, 40, 64), make(2, 2, 40, 64), make(2, 2, 40, 64)
    sinks = make(4) if sink else None
    plan = [torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)]
    plan += [
        torch.empty(5, dtype=kind, device="meta") for kind in (torch.int64, torch.int64, torch.int32, torch.int32)
    ]

    def attend(*tensors: torch.Tensor) -> torch.Tensor:
        return shared_attention(*tensors, plan, scale=0.1, sink=sinks)

    out = checkpoint(attend, q, k, v, use_reentrant=False) if checkpointing else attend(q, k, v)
    assert (out.shape, out.dtype, out.device) == ((2, 40, 4, 64), torch.bfloat16, q.device)
    wanted = (q, k, v) if sinks is None else (q, k, v, sinks)
    for gradient, tensor in zip(torch.autograd.grad(out.sum(), wanted), wanted, strict=True):
        assert (gradient.shape, gradient.dtype, gradient.device) == (tensor.shape, tensor.dtype, tensor.device)
