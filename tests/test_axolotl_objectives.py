"""Objectives in Axolotl: a packed step is the formula, and what cannot be ranked is refused by name."""

import pytest
from datasets import Dataset
from helpers import tiny
from helpers.axolotl_recipe import write_rows
from helpers.ranked import directly, make_ranked, token_directly
from helpers.training import GradientTap, losses, relative

pytest.importorskip("axolotl")
pytestmark = pytest.mark.axolotl


@pytest.fixture
def prepare(read_recipe, tmp_path):
    """Read a recipe on ranked groups and prepare its data."""
    from axolotl.common.datasets import load_datasets

    def run(**changes):
        write_rows(tmp_path / "ranked.jsonl", list(make_ranked(6)))
        entry = {"path": str(tmp_path / "ranked.jsonl"), "ds_type": "json", "type": "mrt_plugin.axolotl.all"}
        plain = {"datasets": [entry], "adapter": None, "load_in_4bit": False, "micro_batch_size": 1, "max_steps": 1}
        plain |= {"sample_packing": True, "sequence_len": 256, "gradient_accumulation_steps": 8, "num_epochs": 1}
        cfg = read_recipe(**(plain | changes))
        return cfg, load_datasets(cfg=cfg)

    return run


@pytest.mark.parametrize("layout", ["shared_prefix", "expanded"])
@pytest.mark.parametrize("objective", ["pro", "plackett_luce", "gem"])
def test_a_packed_step_is_the_formula(prepare, objective, layout, tmp_path):
    """Over packed rows and micro-batches, with held-out groups beside them."""
    from axolotl.train import setup_model_and_trainer

    held_out = write_rows(tmp_path / "held_out.jsonl", list(make_ranked(3, first=12)))
    block = {"objective": objective, "layout": layout, "prefix_check": False}
    if objective == "plackett_luce":
        block |= {"reference": "none"}
    tests = [{"path": held_out, "ds_type": "json", "type": "mrt_plugin.axolotl.all", "split": "train"}]
    changes = {"sequence_len": 640, "test_datasets": tests, "max_grad_norm": 0.0, "gradient_checkpointing": False}
    cfg, meta = prepare(mrt=block, **changes)
    trainer = setup_model_and_trainer(cfg, meta)[0]
    tap = GradientTap()
    trainer.add_callback(tap)
    model = tiny.llama()
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    model.load_state_dict({name: value.clone() for name, value in weights.items()})
    groups = Dataset.from_list(list(make_ranked(6)))
    expected = (directly if objective != "gem" else token_directly)(groups, objective, model=model.train())
    trainer.train()
    assert trainer.layout == layout
    assert losses(trainer)[0] == pytest.approx(expected[0], rel=1e-5)
    assert relative(tap.gradients[0], expected[1]) < 1e-5
    metrics = trainer.evaluate()
    assert ("eval_ranking_accuracy" in metrics) == (objective != "gem")


def test_a_group_that_does_not_fit_is_refused_with_the_length(prepare):
    with pytest.raises(ValueError, match="a row_length of [0-9]+ would do"):
        prepare(mrt={"objective": "pro"}, sequence_len=64)
    # Packed and expanded, a row holds complete pairs.
    with pytest.raises(ValueError, match="a row_length of [0-9]+ would do"):
        prepare(mrt={"objective": "pro", "layout": "expanded"}, sequence_len=96)


def test_options_and_data_that_cannot_be_ranked(prepare, read_recipe, tmp_path):
    with pytest.raises(ValueError, match="gives every prompt one vote"):
        read_recipe(mrt={"objective": "pro", "loss_aggregation": "response"})
    with pytest.raises(ValueError, match="mrt.objective"):
        read_recipe(mrt={"objective": "dpo"})
    chats = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}."}] for n in range(4)]
    path = write_rows(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats])
    entry = {"path": path, "ds_type": "json", "type": "chat_template", "field_messages": "messages"}
    with pytest.raises(ValueError, match="has one response in each row"):
        prepare(mrt={"objective": "pro"}, datasets=[entry], chat_template="tokenizer_default")


def test_options_of_an_objective_leave_prepared_data_valid(read_recipe, tmp_path):
    """What changes rows is part of the fingerprint, what does not is not."""

    def fingerprint(**block):
        return str(read_recipe(mrt={"k": 3, **block}).datasets[0]["conversation"])

    plain = fingerprint(objective="gem")
    assert fingerprint(objective="gem", gem_beta=0.5) == plain
    assert fingerprint(objective="pro") != plain
