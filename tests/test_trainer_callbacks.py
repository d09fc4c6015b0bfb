"""What looks at a run: early stopping, the gap to the training loss, sampled answers, the smoke test."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny
from helpers.training import SHORT, config, losses, make_groups
from peft import LoraConfig
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from mrt_plugin import MultiResponseSFTTrainer
from mrt_plugin.encoding import Encoder
from mrt_plugin.endpoint.jobs import Draw
from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.trainer.callbacks.samples import pick_prompts
from mrt_plugin.trainer.callbacks.smoke import SmokeTestFailed, fault_of, trend
from mrt_plugin.trainer.callbacks.watch import HeldOutEarlyStopping, Overfitting
from mrt_plugin.trainer.mixin import out_of_memory_advice
from mrt_plugin.trainer.prepare import prepare_groups


def build(tmp_path, groups=None, held_out=None, model=None, **settings) -> MultiResponseSFTTrainer:
    return MultiResponseSFTTrainer(
        model=model or tiny.llama(),
        args=config(tmp_path, **settings),
        train_dataset=make_groups(8, 3) if groups is None else groups,
        eval_dataset=held_out,
        processing_class=tiny.tokenizer(chat_template=None),
    )


def logged(trainer, name) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# ---------------------------------------------------------------- early stopping


def overfits(tmp_path, **settings) -> MultiResponseSFTTrainer:
    """A run whose held-out loss falls first and rises then."""
    groups = make_groups(16, 3)
    return build(
        tmp_path,
        groups.select(range(3)),
        groups.select(range(8, 16)),
        learning_rate=5e-3,
        num_train_epochs=40,
        eval_strategy="steps",
        eval_steps=2,
        per_device_train_batch_size=3,
        **settings,
    )


@pytest.mark.slow
def test_a_run_stops_early_and_ends_with_its_best_checkpoint(tmp_path, caplog):
    trainer = overfits(tmp_path, early_stopping=2, min_improvement=0.01, save_only_model=True)
    trainer.train()
    seen = logged(trainer, "eval_loss")
    assert trainer.state.global_step < trainer.state.max_steps
    assert min(seen) < seen[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(seen), rel=1e-5)
    assert "for 2 evaluations. The best checkpoint is loaded." in caplog.text


def after(callback, values) -> int:
    """How many evaluations a callback lets pass, transformers keeping the best one as its trainer does."""
    args = TrainingArguments(output_dir="out", use_cpu=True, metric_for_best_model="loss", greater_is_better=False)
    state, control = TrainerState(), TrainerControl()
    for place, value in enumerate(values, start=1):
        callback.on_evaluate(args, state, control, metrics={"eval_loss": value})
        state.best_metric = value if state.best_metric is None else min(value, state.best_metric)
        if control.should_training_stop:
            return place
    return len(values)


def test_slow_steps_add_up_to_an_improvement():
    slow = [2 - 0.0006 * step for step in range(20)]
    assert after(HeldOutEarlyStopping(3, 0.001), slow) == 20
    assert after(EarlyStoppingCallback(3, 0.001), slow) == 4, "transformers has become better: its own will do"
    assert after(HeldOutEarlyStopping(3, 0.001), [2.0, 1.0, *[1.0 - 0.0001 * step for step in range(20)]]) == 5


def test_a_resumed_run_goes_on_with_its_reference():
    callback = HeldOutEarlyStopping(3, 0.001)
    after(callback, [2.0, 1.0, 1.5])
    again = HeldOutEarlyStopping.from_state(callback.state())
    assert (again.reference, again.early_stopping_patience_counter) == (1.0, 1)
    assert again.state() == callback.state()


def test_what_early_stopping_cannot_do_without_is_named(tmp_path):
    with pytest.raises(ValueError, match="early_stopping needs evaluations"):
        build(tmp_path, early_stopping=2)
    with pytest.raises(ValueError, match="metric_for_best_model='eval_<name>_loss'"):
        build(tmp_path, held_out={"a": SHORT, "b": SHORT}, eval_strategy="epoch", early_stopping=2)
    with pytest.raises(ValueError, match="Remove one"):
        MultiResponseSFTTrainer(
            model=tiny.llama(),
            args=config(tmp_path, eval_strategy="epoch", early_stopping=2),
            train_dataset=make_groups(8, 3),
            eval_dataset=SHORT,
            processing_class=tiny.tokenizer(),
            callbacks=[EarlyStoppingCallback()],
        )


# ---------------------------------------------------------------- overfitting


def test_the_gap_is_held_out_minus_training_loss_and_warns_once(tmp_path, caplog):
    trainer = overfits(tmp_path, max_steps=12)
    trainer.train()
    gap, held_out = logged(trainer, "eval_train_gap"), logged(trainer, "eval_loss")
    assert len(gap) == len(held_out) == 6
    assert gap[-1] == pytest.approx(held_out[-1] - trainer.evaluate(trainer.train_dataset)["eval_loss"], rel=1e-5)
    assert gap[-1] - min(gap) > 0.2
    warnings = [record.getMessage() for record in caplog.records if "Overfitting" in record.getMessage()]
    assert len(warnings) == 1
    assert "more than at its smallest (overfit_limit=0.2)" in warnings[0]


def test_no_warning_below_the_limit_and_words_for_what_the_held_out_loss_does(caplog):
    watch = Overfitting(limit=0.2)
    for step, (held_out, train) in enumerate([(2.0, 1.9), (1.5, 1.3), (1.4, 1.11)]):
        watch.metrics("eval", held_out=held_out, train=train, step=step)
    assert not caplog.records
    watch.metrics("eval", held_out=1.39, train=1.0, step=3)
    assert "The held-out loss itself still falls" in caplog.text
    other = Overfitting(limit=0.2)
    other.metrics("eval", held_out=1.5, train=1.5, step=4)
    other.metrics("eval", held_out=1.6, train=1.3, step=8)
    assert "best at step 4 (1.5000) and is 1.6000 now: stop here" in caplog.text


def test_the_gap_changes_nothing_about_training_and_can_be_left_out(tmp_path):
    runs = [build(tmp_path, held_out=SHORT, eval_strategy="steps", eval_steps=1, overfit_limit=v) for v in (0.0, 0.2)]
    for run in runs:
        run.train()
    assert losses(runs[0]) == losses(runs[1])
    assert [bool(logged(run, "eval_train_gap")) for run in runs] == [False, True]


# ---------------------------------------------------------------- sampled answers


@pytest.mark.parametrize("expanded_form", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_prompts_and_references_are_those_of_the_groups(chat, expanded_form):
    tokenizer = tiny.tokenizer() if chat else tiny.tokenizer(chat_template=None)
    rows, _ = prepare_groups(
        SHORT,
        tokenizer,
        MultiResponseOptions(selector="all"),
        max_length=None,
        seed=0,
        expanded_form=expanded_form,
    )
    found = pick_prompts(rows, 100)
    assert [prompt.tokens for prompt in found] == [
        prompt.tokens for prompt in pick_prompts(rows.select(range(7, -1, -1)), 100)
    ]
    encoder = Encoder(tokenizer)
    texts = {tuple(encoder.encode_prompt(group["prompt"])): group["responses"] for group in SHORT}
    for prompt in found:
        answers = [tokenizer.decode(ids, skip_special_tokens=True) for ids in prompt.references]
        assert [text.strip() for text in answers] == [text.strip() for text in texts.pop(prompt.tokens)]
    assert not texts


@pytest.mark.slow
def test_sampling_is_logged_and_changes_nothing_about_training(tmp_path):
    common = {"held_out": SHORT, "eval_strategy": "steps", "eval_steps": 20, "max_steps": 40, "learning_rate": 1e-2}
    groups = SHORT.map(lambda row: {"prompt": f"A {row['prompt']}"})
    plain = build(tmp_path, groups, **common)
    plain.train()
    sampled = build(tmp_path, groups, sample_prompts=4, samples_per_prompt=3, **common)
    first = sampled.evaluate()
    sampled.train()
    assert losses(sampled) == losses(plain)
    for name in ("coverage", "alignment", "diversity", "sample_tokens", "samples_ended"):
        assert len(logged(sampled, f"eval_{name}")) == 2
        assert not logged(plain, f"eval_{name}")
    last = sampled.evaluate()
    assert last["eval_coverage"] == logged(sampled, "eval_coverage")[1], "the same model gives the same answers"
    assert last["eval_coverage"] > first["eval_coverage"] + 0.3
    assert last["eval_alignment"] > first["eval_alignment"] + 0.3
    assert last["eval_samples_ended"] == 1.0 > first["eval_samples_ended"]


@pytest.mark.slow
def test_an_adapter_under_gradient_checkpointing_trains_on_as_before(tmp_path):
    """Sampling turns to evaluation mode and uses the cache; neither may be left behind."""

    def trained(**settings):
        set_seed(0)  # PEFT draws an adapter's first weights before the trainer sets its seed
        trainer = MultiResponseSFTTrainer(
            model=tiny.model_dir(tmp_path / "model"),
            args=config(
                tmp_path,
                max_steps=4,
                eval_strategy="steps",
                eval_steps=1,
                gradient_checkpointing=True,
                layout="shared_prefix",
                learning_rate=1e-2,
                **settings,
            ),
            train_dataset=make_groups(8, 3),
            eval_dataset=SHORT,
            peft_config=LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear"),
        )
        trainer.train()
        return trainer

    sampled = trained(sample_prompts=2, sample_tokens=8)
    assert losses(sampled) == losses(trained(overfit_limit=0.0))
    assert len(logged(sampled, "eval_diversity")) == 4


def test_sampling_needs_held_out_prompts(tmp_path):
    with pytest.raises(ValueError, match="sample_prompts needs held-out prompts: give an eval_dataset"):
        build(tmp_path, sample_prompts=2)


# ---------------------------------------------------------------- smoke test


def smoke(tmp_path, steps=40, **settings):
    settings = {"learning_rate": 1e-2, "num_train_epochs": 100, **settings}
    return build(tmp_path, SHORT, smoke_steps=steps, **settings)


@pytest.mark.slow
def test_a_sound_run_passes_and_stops_there(tmp_path, caplog):
    trainer = smoke(tmp_path)
    trainer.train()
    assert trainer.state.global_step == 40 < trainer.state.max_steps
    assert "Smoke test passed after 40 steps. Remove smoke_steps to train" in caplog.text
    assert "ok: the loss falls, from" in caplog.text
    assert "ok: the longest rows fit" in caplog.text
    assert "answers are well formed" in caplog.text


@pytest.mark.parametrize("layout", ["shared_prefix", "expanded"])
def test_the_longest_rows_are_those_of_the_layout(tmp_path, layout):
    """One group with a long prompt and two responses, one with a short prompt and three long responses."""
    long_prompt = {"id": "a", "prompt": "Name a fruit. " * 20, "responses": [" plum", " pear"]}
    long_pool = {"id": "b", "prompt": "Number 7:", "responses": [" apple and pear" * (9 + j) for j in range(3)]}
    groups = Dataset.from_list(
        [{**group, "id": f"{group['id']}{j}"} for group in (long_prompt, long_pool) for j in "01"]
    )
    trainer = build(tmp_path, groups, layout=layout, per_device_train_batch_size=1, row_packing=False)
    counts = [trainer.data_collator([trainer.train_dataset[index]])["stats"]["tokens"] for index in range(4)]
    assert len(set(counts)) > 1
    trainer.create_optimizer_and_scheduler(1)
    assert trainer.try_longest_rows() == max(counts)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.slow
def test_a_smoke_test_of_a_run_that_redraws(tmp_path, caplog):
    groups = Dataset.from_list([{**row, "responses": [*row["responses"], f" {row['id']} plum"]} for row in SHORT])
    build(
        tmp_path,
        groups,
        smoke_steps=40,
        learning_rate=1e-2,
        num_train_epochs=100,
        selector="random_k",
        k=2,
        redraw="epoch",
    ).train()
    assert "Smoke test passed after 40 steps" in caplog.text


@pytest.mark.slow
def test_a_run_that_learns_nothing_fails(tmp_path):
    with pytest.raises(SmokeTestFailed, match="FAILED: the loss does not fall by more than its noise"):
        smoke(tmp_path, steps=20, learning_rate=1e-12).train()


def test_a_run_that_does_not_learn_to_end_fails(tmp_path):
    with pytest.raises(SmokeTestFailed, match="(?s)ok: the loss falls.*FAILED: 0 of 8 .*did not end within"):
        smoke(tmp_path, steps=20, learning_rate=3e-4, sample_tokens=8).train()


def test_a_learning_rate_that_destroys_the_weights_fails_at_the_step(tmp_path):
    trainer = smoke(tmp_path, learning_rate=1e30)
    with pytest.raises(SmokeTestFailed, match="failed at step 2: the loss is nan"):
        trainer.train()
    assert trainer.state.global_step == 1
    # transformers' own log would not have shown it
    assert all(math.isfinite(loss) for loss in losses(trainer))


def test_a_gradient_that_is_not_finite_fails(tmp_path):
    model = tiny.llama()
    model.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(SmokeTestFailed, match="failed at step 1: the loss is .*, but its gradient is not finite"):
        smoke(tmp_path, model=model).train()


def test_faults_of_answers():
    loop = "and so it goes on, as it has gone on before, and as it will go on, " * 10
    assert fault_of(Draw(loop, "stop", 90)) == "goes round in circles"
    assert fault_of(Draw(loop, "length", 90)) == "did not end within 90 tokens"
    assert fault_of(Draw(" \n", "stop", 1)) == "is empty"
    assert fault_of(Draw("4", "stop", 1)) is None


def test_a_trend_is_told_from_noise():
    generator = np.random.default_rng(0)
    flat = [trend(generator.standard_t(3, size=100)) for _ in range(300)]
    assert 0.02 < np.mean([found.falls for found in flat]) < 0.09  # 0.05 by construction
    assert 0.02 < np.mean([found.rises for found in flat]) < 0.09
    line = np.linspace(1, 0, 100)
    falling = [trend(line + generator.standard_t(3, size=100)) for _ in range(100)]
    assert np.mean([found.falls for found in falling]) > 0.5
    assert not any(found.rises for found in falling)
    # The first above the last, and nothing between: no trend.
    assert not trend([3.0, *[1.0, 2.0] * 10, 0.0]).falls


def test_running_out_of_memory_says_what_to_lower(tmp_path):
    model = tiny.llama()
    model.model.register_forward_pre_hook(lambda *_: torch.empty(10**15) and None)
    with pytest.raises(torch.OutOfMemoryError, match="(?s)per_device_train_batch_size.*gradient_checkpointing"):
        build(tmp_path, model=model, layout="expanded", row_packing=False).train()
    with pytest.raises(RuntimeError, match="^something else$"), out_of_memory_advice():
        raise RuntimeError("something else")
