"""The TRL trainer: its loss is what the formulas say, however a step is cut, and everything around it works."""

import copy
import math

import pytest
import torch
import trl
from datasets import Dataset
from helpers import families, tiny
from helpers.training import (
    IgnoresTheMask,
    config,
    losses,
    make_groups,
    make_nested_groups,
    one_pair_at_a_time,
    one_step,
    relative,
    trl_settings,
)
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from mrt_plugin import MultiResponseSFTTrainer
from mrt_plugin.options import PREFIX_BACKENDS


@pytest.mark.parametrize("chat", [True, False])
def test_one_response_expanded_is_trls_sft_trainer(tmp_path, chat):
    """Step by step over two epochs, on the same rows in the same order."""
    groups = make_groups(10, 1)
    tokenizer = tiny.tokenizer(family="llama3") if chat else tiny.tokenizer(chat_template=None)
    if chat:
        rows = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["responses"][0]}],
            }
            for row in groups
        ]
    else:
        rows = [{"prompt": row["prompt"], "completion": row["responses"][0]} for row in groups]
    common = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    ours = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(tmp_path, layout="expanded", row_packing=False, train_sampling_strategy="random", **common),
        train_dataset=groups,
        processing_class=tokenizer,
    )
    ours.train()
    theirs = SFTTrainer(
        model=tiny.llama(),
        args=SFTConfig(**trl_settings(tmp_path) | common),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    theirs.train()
    first, *rest = zip(losses(ours), losses(theirs), strict=True)
    assert len(rest) == 2 * math.ceil(10 / 8) - 1
    assert first[0] == pytest.approx(first[1], rel=1e-6)
    for mine, reference in rest:
        assert mine == pytest.approx(reference, rel=2e-4)


@pytest.mark.parametrize("aggregation", ["token", "prompt", "response"])
def test_shared_prefix_equals_expanded(tmp_path, aggregation):
    groups = make_groups(8, 4, weights=True)
    common = {"loss_aggregation": aggregation, "per_device_train_batch_size": 8}
    expanded = one_step(tmp_path, groups, layout="expanded", row_packing=False, **common)
    for backend in ("dense", "sdpa"):
        for packing in (True, False):
            shared = one_step(
                tmp_path, groups, layout="shared_prefix", prefix_backend=backend, row_packing=packing, **common
            )
            assert shared.trainer.layout == "shared_prefix"
            assert shared.loss == pytest.approx(expanded.loss, rel=1e-5)
            assert relative(shared.gradient, expanded.gradient) < 1e-4


@pytest.mark.parametrize("aggregation", ["token", "prompt", "response"])
@pytest.mark.parametrize("layout", ["expanded", "shared_prefix"])
def test_a_step_does_not_depend_on_its_micro_batches(tmp_path, aggregation, layout):
    groups = make_groups(8, 3, weights=True)
    common = {"loss_aggregation": aggregation, "layout": layout}
    whole = one_step(tmp_path, groups, per_device_train_batch_size=8, **common)
    for micro_batches in (2, 4, 8):
        parts = one_step(
            tmp_path,
            groups,
            per_device_train_batch_size=8 // micro_batches,
            gradient_accumulation_steps=micro_batches,
            **common,
        )
        assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
        assert relative(parts.gradient, whole.gradient) < 1e-5


@pytest.mark.parametrize("aggregation", ["token", "prompt", "response"])
@pytest.mark.parametrize("nested", [False, True])
def test_the_step_is_the_formula_one_pair_at_a_time(tmp_path, aggregation, nested):
    """Also for trees of several levels, in one row, in several, and over micro-batches with checkpointing."""
    groups = make_nested_groups() if nested else make_groups(5, 3, weights=True)
    loss, gradient = one_pair_at_a_time(groups, aggregation)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "gradient_checkpointing": True}
    ways = [
        {},
        {"max_length": 200, "row_length": 200},
        {**parts, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ]
    for way in ways if nested else ways[:1]:
        settings = {"per_device_train_batch_size": 6, "layout": "shared_prefix", **way}
        run = one_step(tmp_path, groups, loss_aggregation=aggregation, **settings)
        assert run.trainer.layout == "shared_prefix"
        assert run.loss == pytest.approx(loss, rel=1e-5)
        assert relative(run.gradient, gradient) < 1e-4


HEADS = {
    "granite": {"logits_scaling": 8.0},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 512},
    "gemma2": {"final_logit_softcapping": 3.0, "sliding_window": 512},
}
"""Families whose forward changes the head's output, by so much that a loss without it would be another one."""


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", HEADS)
def test_the_head_is_the_models_own_whatever_trl_makes_of_its_forward(tmp_path, family, lora):
    """TRL 1.15 and later give the model a forward with a fused head. The reference is a copy without it."""
    given = families.SMALL | {"vocab_size": 1024, "initializer_range": 0.1, "pad_token_id": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **given, **HEADS[family]))
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    groups = make_groups(5, 3, weights=True)
    loss, gradient = one_pair_at_a_time(groups, model=copy.deepcopy(model))
    for layout in ("expanded", "shared_prefix"):
        trained = copy.deepcopy(model)
        run = one_step(tmp_path, groups, trained, layout=layout, per_device_train_batch_size=5)
        inner = trained.get_base_model() if lora else trained
        if Version(trl.__version__) >= Version("1.15"):
            assert "_fused_forward" in inner.forward.__code__.co_name
        assert run.loss == pytest.approx(loss, rel=1e-5)
        assert relative(run.gradient, gradient) < 1e-4


def test_prompt_aggregation_takes_the_mean_length_of_the_whole_pool(tmp_path):
    """M_x is a fact of the pool: keeping fewer responses does not change the weight of a token."""
    groups = make_groups(1, 3)
    few = one_step(tmp_path, groups, loss_aggregation="prompt", selector="random_k", k=1)
    row = few.trainer.train_dataset[0]
    weight = max(row["loss_weights"])
    encoder_lengths = []
    for j in range(3):
        alone = Dataset.from_list([{**groups[0], "responses": [groups[0]["responses"][j]]}])
        prepared = one_step(tmp_path, alone, loss_aggregation="token").trainer.train_dataset[0]
        encoder_lengths.append(prepared["segment_units"][0])
    assert weight == pytest.approx(3 / sum(encoder_lengths))


@pytest.mark.slow
def test_eval_loss_is_the_mean_over_all_tokens_whatever_the_batch_size(tmp_path):
    groups = make_groups(7, 3)
    seen = []
    for size, layout in ((1, "expanded"), (3, "shared_prefix"), (7, "shared_prefix")):
        trainer = MultiResponseSFTTrainer(
            model=tiny.llama(),
            args=config(tmp_path, per_device_eval_batch_size=size, layout=layout, selector="random_k", k=2),
            train_dataset=make_groups(2, 3, first=7),
            eval_dataset=groups,
            processing_class=tiny.tokenizer(),
        )
        seen.append(trainer.evaluate()["eval_loss"])
        assert trainer.evaluate(groups)["eval_loss"] == pytest.approx(seen[-1])
        assert trainer.predict(groups).metrics["test_loss"] == pytest.approx(seen[-1])
    whole = one_step(tmp_path, groups, per_device_train_batch_size=7).loss
    assert seen == pytest.approx([whole] * 3, rel=1e-5)


@pytest.mark.slow
def test_lora_checkpointing_accumulation_evaluation_and_the_best_checkpoint(tmp_path):
    groups = make_groups(12, 3)
    trainer = MultiResponseSFTTrainer(
        model=tiny.model_dir(tmp_path / "model"),
        args=config(
            tmp_path,
            num_train_epochs=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            gradient_checkpointing=True,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            learning_rate=3e-3,
        ),
        train_dataset=groups,
        eval_dataset=make_groups(4, 3, first=12),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert logged[0]["responses_per_prompt"] == 3
    for name in ("tokens_per_second", "pairs_per_second", "mean_token_accuracy", "prompt_tokens_saved_share"):
        assert logged[0][name] >= 0
    best = min(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-5)


def test_an_adapter_starts_from_the_seed_of_the_run(tmp_path):
    def start(seed):
        trainer = MultiResponseSFTTrainer(
            model=tiny.llama(),
            args=config(tmp_path, seed=seed),
            train_dataset=make_groups(4, 3),
            processing_class=tiny.tokenizer(),
            peft_config=LoraConfig(r=2, target_modules="all-linear"),
        )
        return {name: weight.clone() for name, weight in trainer.model.named_parameters() if "lora_A" in name}

    once = start(3)
    torch.rand(7)  # what a process drew before
    again, other = start(3), start(4)
    assert once
    for name in once:
        assert torch.equal(once[name], again[name])
        assert not torch.equal(once[name], other[name])


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path):
    def build(folder, **overrides):
        return MultiResponseSFTTrainer(
            model=tiny.llama(),
            args=config(
                tmp_path / folder,
                num_train_epochs=2,
                per_device_train_batch_size=2,
                save_strategy="steps",
                save_steps=3,
                train_sampling_strategy="random",
                selector="random_k",
                k=2,
                **overrides,
            ),
            train_dataset=make_groups(8, 3),
            processing_class=tiny.tokenizer(),
        )

    whole = build("whole")
    whole.train()
    stopped = build("parts")
    stopped.add_callback(_StopAfter(3))
    stopped.train()
    resumed = build("parts")
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed)[-5:] == pytest.approx(losses(whole)[-5:], rel=1e-5)
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_resuming_with_other_data_or_another_order_is_refused(tmp_path, caplog):
    def resume(groups=None, **overrides):
        started = (tmp_path / "out").exists()
        trainer = MultiResponseSFTTrainer(
            model=tiny.llama(),
            args=config(
                tmp_path, per_device_train_batch_size=2, save_strategy="steps", save_steps=2, **{"k": 2, **overrides}
            ),
            train_dataset=make_groups(8, 3) if groups is None else groups,
            processing_class=tiny.tokenizer(),
        )
        trainer.train(resume_from_checkpoint=started)
        return trainer

    resume(selector="random_k")
    changes = {
        "rows: 8 then, 9 now": {"groups": make_groups(9, 3)},
        "content": {"groups": make_groups(8, 3).select([1, 0, *range(2, 8)])},
        "content: ": {"k": 1},
        "content: [0-9a-f]+ then": {"loss_aggregation": "response"},
        "rows per step: 2 then, 4 now": {"gradient_accumulation_steps": 2},
        "seed of the order: 42 then, 7 now": {"data_seed": 7, "selection_seed": 42},
        "train_sampling_strategy: sequential then, random now": {"train_sampling_strategy": "random"},
    }
    for named, change in changes.items():
        with pytest.raises(ValueError, match=f"(?s)step 4 was trained on other data.*{named}.*start a new run"):
            resume(**{"selector": "random_k", **change})
    assert resume(selector="random_k", num_train_epochs=2).state.global_step == 8
    resume(selector="random_k", groups=make_groups(9, 3), num_train_epochs=2, ignore_data_skip=True)
    assert "Resumed with ignore_data_skip and a change: rows: 8 then, 9 now" in caplog.text


def test_fp16_on_a_cpu_is_said_to_be_fp32_and_bf16_is_bf16(tmp_path, caplog):
    groups = make_groups(4, 2)
    full = one_step(tmp_path, groups).loss
    assert "fp16 has no effect on a CPU" not in caplog.text
    assert one_step(tmp_path, groups, bf16=True).loss != full
    assert "fp16 has no effect on a CPU" not in caplog.text
    assert one_step(tmp_path, groups, fp16=True).loss == full
    assert "fp16 has no effect on a CPU: accelerate trains in fp32" in caplog.text


class _StopAfter(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.steps


@pytest.mark.slow
def test_qlora_on_the_cpu_learns_and_its_adapter_reloads(tmp_path):
    path = tiny.model_dir(tmp_path / "model")
    groups, held_out = make_groups(8, 3), make_groups(8, 3, first=8)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    trainer = MultiResponseSFTTrainer(
        model=path,
        args=config(tmp_path, num_train_epochs=4, learning_rate=1e-2, gradient_checkpointing=True),
        train_dataset=groups,
        eval_dataset=held_out,
        quantization_config=quantization,
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < before - 0.1
    trainer.save_model(str(tmp_path / "adapter"))
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(path, quantization_config=quantization)
    again = MultiResponseSFTTrainer(
        model=PeftModel.from_pretrained(base, str(tmp_path / "adapter")),
        args=config(tmp_path),
        train_dataset=groups,
        eval_dataset=held_out,
        processing_class=tiny.tokenizer(),
    )
    assert again.evaluate()["eval_loss"] == pytest.approx(after, rel=2e-3)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"packing": True}, "packing=True"),
        ({"eval_packing": True}, "eval_packing"),
        ({"padding_free": True}, "padding_free"),
        ({"completion_only_loss": False}, "completion_only_loss"),
        ({"assistant_only_loss": True}, "assistant_only_loss"),
        ({"loss_type": "dft"}, "loss_type"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "skip_prepare_dataset"),
        ({"k": 0}, "k=0"),
        ({"alpha": -1.0}, "alpha"),
        ({"layout": "folded"}, "auto, shared_prefix, expanded"),
        ({"loss_aggregation": "word"}, "token, prompt, response"),
        ({"prefix_backend": "flash"}, f"auto, {', '.join(PREFIX_BACKENDS)}"),
        ({"selector": "worst_k"}, "random_k"),
        ({"row_length": 100}, "below max_length=512"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, options, named):
    with pytest.raises(ValueError, match=named):
        config(tmp_path, **options)


@pytest.mark.parametrize("name", ["data_collator", "formatting_func", "compute_loss_func", "compute_metrics"])
def test_arguments_that_cannot_be_honoured_are_refused_by_name(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        MultiResponseSFTTrainer(
            model="no such model", args=config(tmp_path), train_dataset=make_groups(2), **{name: print}
        )


def test_bad_data_is_found_before_the_model_is_loaded(tmp_path):
    bad = Dataset.from_list([{"prompt": "a", "responses": ["b"], "scores": [float("nan")]}])
    with pytest.raises(ValueError, match="scores"):
        MultiResponseSFTTrainer(model="no such model", args=config(tmp_path), train_dataset=bad)


def test_pairs_over_max_length_are_dropped_and_counted(tmp_path, caplog):
    groups = make_groups(4, 2)
    long = Dataset.from_list([{"id": "long", "prompt": "a", "responses": ["b " * 400, "a pear"]}])
    from datasets import concatenate_datasets

    run = one_step(tmp_path, concatenate_datasets([groups, long]), max_length=200)
    report = run.trainer.prepare_reports["train"]
    assert (report.dropped_pairs, report.pairs, report.groups, report.dropped_groups) == (1, 9, 5, 0)
    assert "dropped 1 pairs longer than max_length=200" in caplog.text
    with pytest.raises(ValueError, match="Every group of the train data was dropped"):
        one_step(tmp_path, long, max_length=3, row_length=3)


def test_an_encoding_error_names_the_group(tmp_path):
    base = tiny.tokenizer(chat_template=None)
    groups = Dataset.from_list([{"id": "g7", "prompt": [{"role": "user", "content": "a"}], "responses": ["b"]}])
    with pytest.raises(ValueError, match="Group 'g7'"):
        MultiResponseSFTTrainer(model=tiny.llama(), args=config(tmp_path), train_dataset=groups, processing_class=base)


def test_the_load_balancing_loss_is_refused_by_name_and_an_moe_trains_without_it(tmp_path):
    moe = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=1024, hidden_size=32, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
        )
    )  # fmt: skip
    arguments = {"model": moe, "train_dataset": make_groups(4, 3), "processing_class": tiny.tokenizer()}
    with pytest.raises(ValueError, match="router_aux_loss_coef=0.0"):
        MultiResponseSFTTrainer(args=config(tmp_path), **arguments)
    trainer = MultiResponseSFTTrainer(args=config(tmp_path, router_aux_loss_coef=0.0), **arguments)
    trainer.train()
    assert trainer.layout == "shared_prefix"
    assert losses(trainer)[0] > 0


def test_the_proof_refuses_a_model_that_ignores_the_layout_and_auto_expands(tmp_path, caplog):
    def build(**options):
        model = tiny.llama()
        model.__class__ = IgnoresTheMask
        return MultiResponseSFTTrainer(
            model=model,
            args=config(tmp_path, prefix_check=True, max_steps=1, **options),
            train_dataset=make_groups(4, 3),
            processing_class=tiny.tokenizer(),
        )

    with pytest.raises(ValueError, match="layout=expanded"):
        build(layout="shared_prefix")
    caplog.set_level("INFO", "mrt_plugin")
    trainer = build(layout="auto")
    assert trainer.layout == "expanded"
    assert "Layout expanded" in caplog.text
    trainer.train()
    whole = one_step(tmp_path, make_groups(4, 3), layout="shared_prefix", prefix_check=True)
    assert whole.trainer.layout == "shared_prefix"
    assert losses(trainer)[0] == pytest.approx(whole.loss, rel=1e-5)


def test_auto_expands_where_sharing_buys_nothing(tmp_path):
    alone = {"layout": "auto", "per_device_train_batch_size": 1}
    assert one_step(tmp_path, make_groups(4, 1), **alone).trainer.layout == "expanded"
    assert one_step(tmp_path, make_groups(4, 4), **alone).trainer.layout == "shared_prefix"
    # Prompts begin alike as well, and those of one micro-batch go into one row.
    together = {"layout": "auto", "per_device_train_batch_size": 4}
    assert one_step(tmp_path, make_groups(4, 1), **together).trainer.layout == "shared_prefix"


def scored_pairs(trainer) -> int:
    return sum(map(len, trainer.get_eval_dataloader("train").dataset["segment_lengths"]))


def test_an_evaluation_set_named_train_is_held_out_data(tmp_path):
    held_out = make_groups(6, 3, first=8)
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(tmp_path, selector="random_k", k=1),
        train_dataset=make_groups(8, 3),
        eval_dataset={"train": held_out},
        processing_class=tiny.tokenizer(),
    )
    assert scored_pairs(trainer) == 18
    assert trainer.prepare_reports["train"].pairs == 8
    named = trainer.evaluate()["eval_train_loss"]
    assert named == pytest.approx(trainer.evaluate(held_out)["eval_loss"])
    assert trainer.evaluate({"train": held_out})["eval_train_loss"] == pytest.approx(named)


def test_held_out_responses_of_weight_0_are_scored(tmp_path):
    """`eval_loss` is over all held-out tokens, unweighted."""
    plain = make_groups(4, 3, first=8)
    weighted = plain.add_column("weights", [[1.0, 0.0, 3.0]] * 4)
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(), args=config(tmp_path), train_dataset=make_groups(2, 3), processing_class=tiny.tokenizer()
    )
    with_weights, without = trainer.evaluate(weighted), trainer.evaluate(plain)
    assert with_weights["eval_tokens"] == without["eval_tokens"]
    assert with_weights["eval_loss"] == pytest.approx(without["eval_loss"])


@pytest.mark.parametrize("named", [False, True])
def test_held_out_prompts_that_are_trained_on_are_refused_before_the_model_is_loaded(tmp_path, named):
    held_out = make_groups(6, 2, first=5)
    with pytest.raises(
        ValueError, match=r"3 of the 6 prompts of the evaluation (set 'test'|data) .*split the data by"
    ):
        MultiResponseSFTTrainer(
            model=str(tmp_path / "no model"),
            args=config(tmp_path),
            train_dataset=make_groups(8, 3),
            eval_dataset={"test": held_out} if named else held_out,
        )
