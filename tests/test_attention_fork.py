"""The forked cache against one pair at a time, and its refusals."""

from itertools import accumulate, pairwise, product
from typing import Any

import pytest
import torch
import torch.distributed
from helpers.families import (
    FAMILIES,
    OWN_STATES,
    PAD,
    STATEFUL,
    UNFORKABLE,
    assert_equivalent,
    build,
    gradient,
    one_by_one,
    random_group,
    rows_loss,
)
from helpers.trees import deep_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, LinearAttentionLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from mrt_plugin.attention import NotShareable, prove
from mrt_plugin.attention.branches import FORWARD, Branch, Placed, batch_inner, batch_leaves
from mrt_plugin.attention.fork import ForkBackend
from mrt_plugin.attention.fork_cache import REASONS
from mrt_plugin.layout.rows import build_rows
from mrt_plugin.loss.token_nll import TokenNLL

# Prompts of one shared token, pairs alone and groups without a shared prefix among them, and trees of up to 8 levels.
PACKED = [
    [random_group(17, [3, 15, 1]), random_group(2, [4])],
    [random_group(20, [2, 9]), random_group(2, [1, 1])],
    [random_group(5, [3]), random_group(1, [2, 12])],
    *deep_rows(),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_one_pair_at_a_time(name: str) -> None:
    assert_equivalent(ForkBackend(build(name).config), name, PACKED)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_groups_in_any_packing(data: st.DataObject) -> None:
    group = st.builds(
        random_group,
        st.integers(1, 20),
        st.lists(st.integers(1, 12), min_size=1, max_size=6) | st.lists(st.integers(1, 2), min_size=1, max_size=32),
        st.integers(0, 9),
    )
    packed = data.draw(st.lists(st.lists(group, min_size=1, max_size=2), min_size=1, max_size=2))
    name = data.draw(st.sampled_from(["qwen3_5", "mamba2"]))
    assert_equivalent(ForkBackend(build(name).config), name, packed)


@pytest.mark.processes
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_next", "qwen3_5", "mamba2", "bamba", "falcon_h1"])
def test_sharded_weights(name: str) -> None:
    """FSDP2 frees the weights of a layer after each forward, and gathers them again for the backward pass."""
    groups = [group for row in PACKED for group in row]
    reference = build(name, attn_implementation="eager")
    expected, expected_gradient = gradient(reference, lambda: one_by_one(reference, groups))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for checkpointing in (False, True):
            model = build(name)
            backend, rows = ForkBackend(model.config), build_rows(PACKED, PAD)
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            for module in list(model.modules()):
                if isinstance(module, GradientCheckpointingLayer):
                    fully_shard(module)
            fully_shard(model)
            loss = rows_loss(backend, model, rows)
            loss.backward()
            found = torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()]).double()  # type: ignore
            assert abs(loss.detach() / expected - 1) < 1e-5
            assert (found - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", [*STATEFUL, "gemma3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_is_proved(name: str, checkpointing: bool) -> None:
    model = build(name)
    backend, group = ForkBackend(model.config), random_group(30, [3, 20, 7])
    assert prove(model, backend, group, gradient_checkpointing=checkpointing).nll_difference < 1e-4  # type: ignore


def test_states_that_cannot_be_forked_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnState(LinearAttentionLayer):
        """As a new release might have one."""

    monkeypatch.setitem(DYNAMIC_LAYER_TYPE_MAPPING, "conv", OwnState)
    config = AutoConfig.for_model("lfm2", num_hidden_layers=2, layer_types=["conv", "full_attention"])
    with pytest.raises(NotShareable, match="which it cannot fork"):
        ForkBackend(config)


@pytest.mark.parametrize("name", UNFORKABLE)
def test_what_transformers_cannot_continue_is_refused_for_a_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is right without the refusal, transformers has changed, and the reason is to be removed."""
    model = build(name)
    with pytest.raises(NotShareable, match=f"cannot continue a cached prompt of {name}"):
        ForkBackend(model.config)
    monkeypatch.delitem(REASONS, name)
    rows = build_rows(PACKED, PAD)
    if name == "minimax":
        with pytest.raises(ValueError, match="cache of its own"):
            rows_loss(ForkBackend(model.config), model, rows)
        return
    found = rows_loss(ForkBackend(model.config), model, rows)
    assert abs(found / one_by_one(model, [group for row in PACKED for group in row]) - 1) > 1e-4
    if name == "jamba":
        with pytest.raises(NotShareable, match="Cause: it continues a cached prompt"):
            prove(model, ForkBackend(model.config))


@pytest.mark.parametrize("name", ["recurrent_gemma", "rwkv"])
def test_models_that_do_not_fill_their_cache_are_refused(name: str) -> None:
    model = build(name, **OWN_STATES[name])
    with pytest.raises(NotShareable, match="did not fill its cache"):
        prove(model, ForkBackend(model.config), random_group(30, [3, 20, 7]))


def count_forwards(groups: list[Any]) -> int:
    model, forwards = build("qwen3_5"), []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    assert torch.isfinite(rows_loss(ForkBackend(model.config), model, build_rows([groups], PAD)))
    return len(forwards)


def test_groups_run_together() -> None:
    """Equal and near prompts in one forward, and their responses in another, if they pad each other little."""
    equal = [random_group(40, [5, 9], seed=seed) for seed in range(4)]
    near = [random_group(length, [5, 9]) for length in (40, 43, 48)]
    far = [random_group(length, [5, 9]) for length in (20, 200)]
    long = [random_group(40, [5, 150], seed=seed) for seed in range(4)]
    alone = [random_group(length, [5]) for length in (10, 12, 300)]
    assert [count_forwards(groups) for groups in (equal, near, far, long, alone)] == [2, 2, 4, 3, 2]


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(2, 300), min_size=1, max_size=8), children=st.integers(2, 5))
def test_batches_cost_the_least(lengths: list[int], children: int) -> None:
    """Against every division of the sorted branches in parts."""
    branches = [
        Placed(Branch(list(range(n)), 0, 0, [Branch([0], 0, n, []) for _ in range(children)]), row)
        for row, n in enumerate(lengths)
    ]
    ordered = sorted(lengths)
    inner = lambda part: sum((children - 1) * (n - part[0]) for n in part)  # noqa: E731
    leaves = lambda part: sum(part[-1] - n for n in part)  # noqa: E731
    for batch, cost in ((batch_inner, inner), (batch_leaves, leaves)):
        found = batch(branches)
        sizes = [len(part) for part in found]
        assert sorted(placed.row for part in found for placed in part) == list(range(len(lengths)))

        def total(sizes: Any, cost: Any = cost) -> int:
            starts = [0, *accumulate(sizes)]
            return sum(cost(ordered[start:stop]) + FORWARD for start, stop in pairwise(starts))

        cuts = product([False, True], repeat=len(lengths) - 1)
        every = [[len(part) for part in "".join("x" + "|" * cut for cut in [*c, False]).split("|")] for c in cuts]
        assert total(sizes) == min(map(total, every))
        for part in found if batch is batch_inner else []:
            assert len({len(placed.branch.tokens) for placed in part}) == 1


def test_the_first_batch_of_a_model_that_changes_its_logits() -> None:
    """Nothing proved before: the call that notices the change must not run the model again on a filled cache."""

    def changed() -> torch.nn.Module:
        model = build("llama")

        class Changed(type(model)):  # type: ignore[misc]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                output = super().forward(*args, **kwargs)
                output.logits = torch.tanh(output.logits) * 3
                return output

        model.__class__ = Changed
        return model

    groups = [group for row in PACKED for group in row]
    reference = changed()
    expected, expected_gradient = gradient(reference, lambda: one_by_one(reference, groups))
    model = changed()
    backend, rows, compute = ForkBackend(model.config), build_rows(PACKED, PAD), TokenNLL(model)
    found, found_gradient = gradient(
        model, lambda: (backend.token_nll(model, rows, compute.bound(model)) * rows.loss_weights).sum()
    )
    assert abs(found / expected - 1) < 1e-5
    assert (found_gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
