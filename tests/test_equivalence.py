"""A step is the formula of `docs/loss.md` on one pair at a time: any family, backend, layout, packing and cutting."""

import random

import pytest
import torch
from helpers import tiny
from helpers.families import CHUNKED, FAMILIES, STATEFUL, VOCABULARY, build, gradient, plain_compute
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt_plugin import GroupedResponseCollator
from mrt_plugin.attention import ExpandedBackend, NotShareable
from mrt_plugin.attention.two_part import TwoPartBackend
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.extension import load_extension
from mrt_plugin.layout.group_row import IGNORE, build_group_row
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
    """A prompt, its responses with their weights, and the mean length of the pool that they are from."""
    lengths = draw(
        st.lists(st.integers(1, 12), min_size=1, max_size=6) | st.lists(st.integers(1, 3), min_size=1, max_size=32)
    )
    weights = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=len(lengths), max_size=len(lengths)))
    weights = weights if any(weights) else [1.0] * len(weights)
    rng = random.Random(draw(st.integers(0, 99)))
    prompt = [rng.randrange(3, VOCABULARY) for _ in range(draw(st.integers(1, 20)))]
    responses = [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]
    return prompt, responses, weights, draw(st.sampled_from([None, 4.0]))


def formula(model, batch, aggregation) -> torch.Tensor:
    """The sums of `docs/loss.md`, over pairs that each have a forward of their own."""
    compute = plain_compute(model)
    total, units = torch.zeros(()), 0.0
    for prompt, responses, weights, pool_mean in batch:
        mean = sum(map(len, responses)) / len(responses) if pool_mean is None else pool_mean
        for response, weight in zip(responses, weights, strict=True):
            ids = torch.tensor([prompt + response])
            labels = ids.clone()
            labels[0, : len(prompt)] = IGNORE
            nll = compute({"input_ids": ids}, labels).sum()
            if aggregation == "token":
                total, units = total + weight * nll, units + weight * len(response)
            elif aggregation == "prompt":
                total, units = total + weight * nll / (mean * sum(weights)), units + weight / sum(weights)
            else:
                total, units = total + weight * nll / len(response), units + weight
    return total / units


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_step_is_the_formula_on_one_pair_at_a_time(data):
    name = data.draw(st.sampled_from(sorted(FAMILIES)), label="family")
    make_backend, layout = WAYS[data.draw(st.sampled_from(ways_of(name)), label="way")]
    batch = data.draw(st.lists(groups(), min_size=1, max_size=3), label="groups")
    aggregation = data.draw(st.sampled_from(["token", "prompt", "response"]), label="aggregation")
    longest = max(len(prompt) + max(map(len, responses)) for prompt, responses, _, _ in batch)
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
    rows = [
        build_group_row(
            [Pair(prompt + own, [False] * len(prompt) + [True] * len(own)) for own in responses],
            aggregation,
            weights,
            pool_mean,
        )
        for prompt, responses, weights, pool_mean in batch
    ]
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
