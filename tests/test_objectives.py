"""Each objective equals its formula written down directly, in both layouts, all backends and any cut of a step."""

import math
from functools import partial

import pytest
import torch
from helpers.ranked import (
    directly,
    make_ranked,
    slow_plackett_luce,
    slow_pro,
    token_directly,
)
from helpers.training import one_step, relative

from mrt_plugin.loss.dft import dft_loss
from mrt_plugin.loss.gem import gem_loss
from mrt_plugin.loss.plackett_luce import plackett_luce_loss
from mrt_plugin.loss.pro import pro_loss, pro_sft_loss
from mrt_plugin.loss.ranking import best_of

WAYS = {
    "expanded": {"layout": "expanded", "row_packing": False},
    "expanded, packed": {"layout": "expanded", "prefix_backend": "dense"},
    "sdpa": {"layout": "shared_prefix", "prefix_backend": "sdpa"},
    "dense": {"layout": "shared_prefix", "prefix_backend": "dense"},
    "fork": {"layout": "shared_prefix", "prefix_backend": "fork"},
    "unequal micro-batches": {
        "layout": "shared_prefix",
        "prefix_backend": "sdpa",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "gradient_checkpointing": True,
    },
    "groups over several rows": {"layout": "shared_prefix", "prefix_backend": "sdpa", "max_length": 64},
}


def as_arrays(groups):
    """Random means, lengths, scores and group numbers for the pure functions."""
    generator = torch.Generator().manual_seed(1)
    numbers = torch.tensor([number for number, scores in enumerate(groups) for _ in scores])
    scores = torch.tensor([score for scores in groups for score in scores], dtype=torch.float64)
    lengths = torch.randint(1, 9, (len(numbers),), generator=generator)
    sums = -torch.rand(len(numbers), generator=generator, dtype=torch.float64) * 3 * lengths
    return sums.requires_grad_(), lengths, scores, numbers


SCORES = [[3.0, 1.0], [0.5, 0.5, 0.2, math.nan, 0.9], [1.0, 1.0], [math.nan, 2.0, 1.0], [1e6, 0.0, -1e6], [4.0]]


@pytest.mark.parametrize("objective", ["pro", "plackett_luce"])
def test_the_pure_functions_are_their_formulas_in_loops(objective):
    """Ties, missing scores, unequal K, and scores at which exp overflows (the loops leave out that group)."""
    sums, lengths, scores, numbers = as_arrays(SCORES)
    if objective == "pro":
        found = pro_loss(sums / lengths, scores, numbers) + pro_sft_loss(sums, scores, numbers)
        slow = slow_pro
    else:
        found, slow = plackett_luce_loss(0.1 * sums, scores, numbers), slow_plackett_luce
    found.sum().backward()
    gradient = sums.grad.clone()
    for number, own in enumerate(SCORES):
        mine = (numbers == number).nonzero().flatten()
        if objective == "pro" and max(own) == 1e6:
            assert math.isfinite(found[number])
            assert gradient[mine].isfinite().all()
            continue
        sums.grad = None
        kept = [index for index in mine.tolist() if not math.isnan(scores[index])]
        arguments = [[values[index] for index in kept] for values in (sums, lengths, scores)]
        expected = slow(*arguments)
        assert found[number].item() == pytest.approx(float(expected), rel=1e-9, abs=1e-9)
        if expected.requires_grad:
            expected.backward()
            assert torch.allclose(gradient[mine], sums.grad[mine], rtol=1e-9)


def test_pro_with_two_responses_is_a_logistic_loss():
    r = torch.tensor([-0.3, -1.7], dtype=torch.float64)
    s = torch.tensor([0.9, 0.2], dtype=torch.float64)
    found = pro_loss(r, s, torch.zeros(2, dtype=torch.int64))
    assert found.item() == pytest.approx(-math.log(1 / (1 + math.exp(-(0.9 - 0.2) * (-0.3 + 1.7)))))
    turned = pro_loss(r.flip(0), s.flip(0), torch.zeros(2, dtype=torch.int64))
    assert turned.item() == pytest.approx(found.item())


def test_no_responses_have_no_loss():
    """As in a batch of fillers."""
    none, numbers = torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for found in (pro_loss(none, none, numbers), plackett_luce_loss(none, none, numbers)):
        assert found.shape == (0,)
        assert found.sum().requires_grad
    assert best_of(none, numbers).shape == (0,)


def test_the_token_losses_are_their_formulas():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([0, 6, 3, 3, 1])
    for loss, beta in ((dft_loss, None), (gem_loss, 0.7), (partial(gem_loss, beta=0.4), 0.4)):
        found = loss(logits, targets)
        expected = []
        for own, target in zip(logits, targets, strict=True):
            log_p = own - own.exp().sum().log()
            if beta is None:
                expected.append(-log_p[target].detach().exp() * log_p[target])
            else:
                q = (own / beta).exp() / (own / beta).exp().sum()
                expected.append(sum(q[v].detach() * log_p[v] for v in range(7)) - log_p[target])
        assert torch.allclose(found, torch.stack(expected), atol=1e-6)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        (slow,) = torch.autograd.grad(torch.stack(expected).sum(), logits)
        assert torch.allclose(gradient, slow, atol=1e-6)


def test_gem_takes_tokens_that_the_model_excludes():
    logits = torch.tensor([[1.0, -torch.inf, 0.0]], requires_grad=True)
    gem_loss(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.isfinite().all()
    alone = torch.tensor([[1.0, 0.0]], requires_grad=True)
    assert gem_loss(alone, torch.tensor([0])).item() == pytest.approx(gem_loss(logits, torch.tensor([0])).item())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("objective", "ours", "slow"),
    [
        ("pro", {}, {}),
        ("plackett_luce", {"reference": "none", "plackett_luce_beta": 0.5}, {"beta": 0.5}),
    ],
)
def test_a_step_is_the_formula_one_pair_at_a_time(tmp_path, way, objective, ours, slow):
    groups = make_ranked()
    loss, gradient, figures = directly(groups, objective, **slow)
    settings = {"per_device_train_batch_size": 5, "objective": objective, **ours, **WAYS[way]}
    run = one_step(tmp_path, groups, **settings)
    assert run.trainer.layout == settings["layout"]
    assert run.loss == pytest.approx(loss, rel=1e-5)
    assert relative(run.gradient, gradient) < 1e-5
    logged = next(entry for entry in run.trainer.state.log_history if "loss" in entry)
    assert {name: logged[name] for name in figures} == pytest.approx(figures, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", ["dft", "gem"])
def test_a_step_of_a_token_loss_is_the_formula(tmp_path, way, objective):
    groups = make_ranked().remove_columns("scores")
    loss, gradient = token_directly(groups, objective)
    settings = {"per_device_train_batch_size": 5, "objective": objective, **WAYS[way]}
    run = one_step(tmp_path, groups, **settings)
    assert run.loss == pytest.approx(loss, rel=1e-5)
    assert relative(run.gradient, gradient) < 1e-5
