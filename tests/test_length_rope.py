"""Rotary angles that depend on the longest pair of a forward pass: allowed where no step can tell, else refused."""

import pytest
import torch
from helpers import tiny
from helpers.families import PAD, build, random_group
from helpers.training import config, make_groups, relative
from transformers import TrainerCallback

from mrt_plugin import MultiResponseSFTTrainer
from mrt_plugin.attention import NotShareable
from mrt_plugin.attention.fork import ForkBackend
from mrt_plugin.attention.length_rope import length_ropes
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.rows import build_rows
from mrt_plugin.loss.token_nll import TokenNLL
from mrt_plugin.models.log_likelihood import log_likelihoods

THRESHOLD = 44


def phi3(threshold=THRESHOLD):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [16.0, 8.0, 4.0, 2.0],
        "original_max_position_embeddings": threshold,
    }
    return build("phi3", vocab_size=1024, original_max_position_embeddings=threshold, rope_parameters=rope)


def dynamic(threshold=THRESHOLD):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return build("llama", vocab_size=1024, max_position_embeddings=threshold, rope_parameters=rope)


class Gradients(TrainerCallback):
    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone())


def trainer(tmp_path, model, groups, tap=None, **options):
    """For data whose pairs have 32 to 57 tokens."""
    return MultiResponseSFTTrainer(
        model=model,
        args=config(tmp_path, **{"max_steps": 1, "prefix_check": True, **options}),
        train_dataset=groups,
        processing_class=tiny.tokenizer(),
        callbacks=[tap] if tap else None,
    )


@pytest.mark.parametrize("layout", ["expanded", "shared_prefix"])
@pytest.mark.parametrize(("build_model", "kind"), [(phi3, "longrope"), (dynamic, "dynamic")])
def test_pairs_on_both_sides_are_refused_with_the_remedy(tmp_path, build_model, kind, layout):
    with pytest.raises(ValueError, match=rf"\({kind}\).*of the training data.*max_length={THRESHOLD}"):
        trainer(tmp_path, build_model(), make_groups(), layout=layout)
    below = trainer(tmp_path, build_model(), make_groups(), layout=layout, max_length=THRESHOLD)
    assert below.layout == layout
    below.train()


def test_held_out_pairs_are_refused_before_training(tmp_path):
    groups = make_groups()
    short = groups.filter(lambda row: int(row["id"]) % 3 == 0)
    groups = groups.map(lambda row: {"prompt": row["prompt"].replace("Name", "Give")})
    ready = trainer(tmp_path, phi3(), short, max_length=None)
    with pytest.raises(ValueError, match="longrope.*of the evaluation data"):
        ready.evaluate(groups)
    with pytest.raises(ValueError, match="longrope.*of the evaluation data"):
        MultiResponseSFTTrainer(
            model=phi3(),
            args=config(tmp_path, max_steps=1, max_length=None),
            train_dataset=short,
            eval_dataset=groups,
            processing_class=tiny.tokenizer(),
        )


@pytest.mark.parametrize("layout", ["expanded", "shared_prefix"])
@pytest.mark.parametrize("threshold", [8, 4096])
def test_on_one_side_a_step_does_not_depend_on_how_it_is_cut(tmp_path, layout, threshold):
    found = []
    for size in (1, 8):
        tap = Gradients()
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_grad_norm": 0.0}
        trainer(tmp_path, phi3(threshold), make_groups(8), tap, layout=layout, **cut).train()
        found.append(tap.gradients[0])
    assert relative(*found) < 1e-5


def test_beyond_the_threshold_dynamic_is_refused_at_any_length(tmp_path):
    with pytest.raises(ValueError, match=r"\(dynamic\).*max_length=8 \(Axolotl: sequence_len\), which drops them\.$"):
        trainer(tmp_path, dynamic(8), make_groups())


def test_the_fork_refuses_a_prompt_on_the_other_side():
    model = phi3(20)
    rows = build_rows([[random_group(15, [9, 8])]], PAD)
    with pytest.raises(NotShareable, match="two sides of 20 tokens"):
        ForkBackend(model.config).token_nll(model, rows, TokenNLL(model).bound(model))


def test_likelihoods_do_not_depend_on_the_batch():
    pairs = [Pair(list(range(5, 5 + length)), [False] * 5 + [True] * (length - 5)) for length in (10, 18, 25, 30)]
    model = phi3(20)
    alone = [log_likelihoods(model, [pair]).item() for pair in pairs]
    assert log_likelihoods(model, pairs) == pytest.approx(alone, rel=1e-5)
    with pytest.raises(ValueError, match="dynamic.*of the measured data"):
        log_likelihoods(dynamic(20), pairs)


def test_what_has_no_such_angles():
    assert [length_ropes(build(name).config) for name in ("llama", "gemma3", "gpt2", "mamba2")] == [[]] * 4
