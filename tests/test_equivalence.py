"""A step is the formula of `docs/loss.md` on one pair at a time: any family, backend, layout, packing and cutting."""

import random

import pytest
import torch
from helpers import tiny
from helpers.families import CHUNKED, FAMILIES, STATEFUL, VOCABULARY, build, gradient, plain_compute
from helpers.trees import random_pairs, shifted
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt_plugin import GroupedResponseCollator
from mrt_plugin.attention import ExpandedBackend, NotShareable
from mrt_plugin.attention.two_part import TwoPartBackend
from mrt_plugin.extension import load_extension
from mrt_plugin.layout.group_row import IGNORE, GroupRow, build_group_row
from mrt_plugin.layout.rows import Rows
from mrt_plugin.loss.token_nll import TokenNLL, step_loss
from mrt_plugin.options import PREFIX_BACKENDS

WAYS = {
    "expanded": (lambda config: ExpandedBackend(), "expanded"),
    "expanded, packed": (TwoPartBackend, "expanded"),
    # flex has no backward pass on CPU: tests/test_attention_flex.py compares its forward.
    **{name: (load_extension(place), "shared_prefix") for name, place in PREFIX_BACKENDS.items() if name != "flex"},
}
REFUSED = {
    "expanded": (),
    "expanded, packed": (*STATEFUL, *CHUNKED),
    "sdpa": (*STATEFUL, *CHUNKED),
    "dense": STATEFUL,
    "fork": (),
}
"""The families that each way of ours refuses."""


def ways_of(name: str) -> list[str]:
    return [way for way, (make_backend, _) in WAYS.items() if shares(make_backend, build(name).config)]


def shares(make_backend, config) -> bool:
    try:
        make_backend(config)
    except NotShareable:
        return False
    return True


@st.composite
def groups(draw):
    """Pairs of a random tree dealt to groups: the pairs of each group, their weights, and the pool's mean length."""
    seed = draw(st.integers(0, 9999), label="seed")
    pairs = random_pairs(
        seed,
        depth=draw(st.integers(1, 6), label="depth"),
        fan_out=draw(st.integers(1, 8), label="fan-out"),
        longest=draw(st.sampled_from([1, 4, 12]), label="longest run"),
        vocabulary=draw(st.sampled_from([8, VOCABULARY]), label="vocabulary"),
        most=8,
    )
    rng = random.Random(seed)
    count = min(len(pairs), draw(st.integers(1, 3), label="groups"))
    found = []
    for dealt in (pairs[place::count] for place in range(count)):
        weights = [rng.choice([0.0, 0.5, 1.0, 3.0]) for _ in dealt]
        found.append((dealt, weights if any(weights) else [1.0] * len(dealt), rng.choice([None, 4.0])))
    return found


def formula(model, batch, aggregation) -> torch.Tensor:
    """The sums of `docs/loss.md`, over pairs that each have a forward of their own."""
    compute = plain_compute(model)
    total, units = torch.zeros(()), 0.0
    for pairs, weights, pool_mean in batch:
        mean = sum(pair.trained_length for pair in pairs) / len(pairs) if pool_mean is None else pool_mean
        for pair, weight in zip(pairs, weights, strict=True):
            nll = compute({"input_ids": torch.tensor([pair.input_ids])}, shifted(pair)).sum()
            if aggregation == "token":
                total, units = total + weight * nll, units + weight * pair.trained_length
            elif aggregation == "prompt":
                total, units = total + weight * nll / (mean * sum(weights)), units + weight / sum(weights)
            else:
                total, units = total + weight * nll / pair.trained_length, units + weight
    return total / units


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_step_is_the_formula_on_one_pair_at_a_time(data):
    name = data.draw(st.sampled_from(sorted(FAMILIES)), label="family")
    make_backend, layout = WAYS[data.draw(st.sampled_from(ways_of(name)), label="way")]
    batch = data.draw(groups(), label="groups")
    aggregation = data.draw(st.sampled_from(["token", "prompt", "response"]), label="aggregation")
    longest = max(len(pair.input_ids) for pairs, _, _ in batch for pair in pairs)
    row_length = data.draw(st.sampled_from([longest, longest + 30, 400]), label="row_length")

    reference = build(name, attn_implementation="eager")
    expected, expected_gradient = gradient(reference, lambda: formula(reference, batch, aggregation))

    model = build(name)
    backend = make_backend(model.config)
    backend.prepare_model(model)
    tokenizer = tiny.tokenizer(padding_side=data.draw(st.sampled_from(["left", "right"]), label="side"))
    collator = GroupedResponseCollator(
        tokenizer, layout=layout, row_length=row_length, packing=not isinstance(backend, ExpandedBackend)
    )
    rows = [build_group_row(pairs, aggregation, weights, pool_mean) for pairs, weights, pool_mean in batch]
    size = data.draw(st.integers(1, len(rows)), label="groups per micro-batch")
    micro_batches = [Rows.from_batch(collator(rows[i : i + size])) for i in range(0, len(rows), size)]
    units = torch.stack([part.units.sum() for part in micro_batches]).sum()
    token_nll = TokenNLL(model, chunk=data.draw(st.sampled_from([3, 1000]), label="chunk"))

    def step() -> torch.Tensor:
        parts = [
            step_loss(backend.token_nll(model, part, token_nll.bound(model)), part.loss_weights, units)
            for part in micro_batches
        ]
        return torch.stack(parts).sum()

    found, found_gradient = gradient(model, step)
    assert abs(found / expected - 1) < 1e-5
    assert (found_gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_its_ways(name):
    """So that a family that one backend begins to refuse is noticed."""
    model = build(name)
    for way, refused in REFUSED.items():
        make_backend, _ = WAYS[way]
        if name not in refused:
            make_backend(model.config).prepare_model(model)
        else:
            with pytest.raises(ValueError, match="prefix_backend="):
                make_backend(model.config)


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_of_fillers_trains_nothing(way):
    """As a process has one where the groups do not divide by the processes: every parameter gets a gradient of 0."""
    make_backend, layout = WAYS[way]
    model = build("llama")
    backend = make_backend(model.config)
    backend.prepare_model(model)
    collator = GroupedResponseCollator(
        tiny.tokenizer(), layout=layout, row_length=64, packing=not isinstance(backend, ExpandedBackend)
    )
    filler = GroupRow(
        input_ids=[5],
        labels=[IGNORE],
        loss_weights=[0.0],
        shared_lengths=[0],
        segment_lengths=[1],
        segment_units=[0.0],
        segment_responses=[0],
    )
    rows = Rows.from_batch(collator([filler] * 3))
    token_nll = TokenNLL(model)
    loss, found = gradient(
        model,
        lambda: step_loss(backend.token_nll(model, rows, token_nll.bound(model)), rows.loss_weights, rows.units.sum()),
    )
    assert loss == 0
    assert found.abs().max() == 0
    assert all(parameter.grad is not None for parameter in model.parameters())
