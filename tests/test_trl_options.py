"""Every option of the TRL configuration is accounted for, on both ends of the supported releases.

A new release's new option is on none of the lists and fails here, until someone has looked at what it does to groups.
"""

from dataclasses import fields

import pytest
import torch
from helpers import tiny
from helpers.families import build
from helpers.training import config, losses, make_groups, one_step, relative
from transformers import TrainingArguments
from trl import SFTConfig

from mrt_plugin import MultiResponseSFTTrainer
from mrt_plugin.trainer.sft import ACCEPTED, refused_options

UNTOUCHED = set(
    """
    activation_offloading adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size bf16 bf16_full_eval
    chat_template_path data_seed dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
    dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_bucket_cap_mb
    ddp_find_unused_parameters ddp_timeout debug deepspeed disable_tqdm do_eval do_predict do_train
    enable_jit_checkpoint eos_token eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start eval_steps
    eval_strategy eval_use_gather_object fp16 fp16_full_eval full_determinism greater_is_better hub_always_push
    hub_model_id hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip include_for_metrics
    include_num_input_tokens_seen label_names learning_rate length_column_name load_best_model_at_end local_rank
    log_level log_level_replica log_on_each_node logging_first_step logging_nan_inf_filter logging_steps
    logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps metric_for_best_model
    model_init_kwargs neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules output_dir
    packing_strategy pad_token prediction_loss_only project push_to_hub remove_unused_columns report_to
    restore_callback_states_from_checkpoint resume_from_checkpoint run_name save_on_each_node save_only_model
    save_steps save_strategy save_total_limit seed skip_memory_metrics tf32 torch_compile torch_compile_backend
    torch_compile_mode torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id
    trust_remote_code use_cache use_cpu warmup_steps weight_decay
    """.split()
)
"""What TRL or transformers does with them is right for groups as well (or, as for packing_strategy, does nothing)."""

HONOURED = set(
    """
    activation_checkpointing activation_checkpointing_kwargs average_tokens_across_devices dataset_num_proc
    ddp_broadcast_buffers fsdp fsdp_config gradient_accumulation_steps gradient_checkpointing
    gradient_checkpointing_kwargs max_length pad_to_multiple_of per_device_eval_batch_size per_device_train_batch_size
    router_aux_loss_coef shuffle_dataset use_liger_kernel
    """.split()
)
"""Our code reads them, or has a reason that it need not (average_tokens_across_devices)."""

REFUSED = {
    "packing": True,
    "eval_packing": True,
    "padding_free": True,
    "completion_only_loss": False,
    "assistant_only_loss": True,
    "loss_type": "dft",
    "label_smoothing_factor": 0.1,
    "truncation_mode": "keep_end",
    "train_sampling_strategy": "group_by_length",
    "dataset_kwargs": {"add_special_tokens": False},
    "dataset_text_field": "content",
    "dataloader_drop_last": True,
    "batch_eval_metrics": True,
    "ddp_static_graph": True,
    "liger_kernel_config": {"fused_linear_cross_entropy": True},
}
"""A value of each that is refused by name when the configuration is made."""

REFUSED_BY_THE_TRAINER = {"accelerator_config", "parallelism_config"}


INSTALLED = {item.name for item in (*fields(SFTConfig), *fields(TrainingArguments)) if item.init}


def test_every_option_is_on_a_list():
    known = [UNTOUCHED, HONOURED, set(REFUSED), REFUSED_BY_THE_TRAINER]
    assert sum(map(len, known)) == len(set().union(*known)), "an option is on two lists"
    new = INSTALLED - set().union(*known)
    assert not new, f"look at what these do to a grouped run, and put them on a list: {sorted(new)}"


def test_an_option_that_a_release_has_dropped_is_not_looked_at():
    values = {name: accepted[0] for name, accepted, _ in ACCEPTED}
    assert refused_options(values) == refused_options({}) == []
    for name, _, reason in ACCEPTED:
        assert refused_options({name: "another"}) == [(name, reason)]
        assert refused_options({other: value for other, value in values.items() if other != name}) == []


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & INSTALLED))
def test_what_is_refused_is_refused_by_name(tmp_path, name):
    with pytest.raises(ValueError, match=f"does not take {name}"):
        config(tmp_path, **{name: REFUSED[name]})


def test_batches_are_not_dispatched(tmp_path):
    with pytest.raises(ValueError, match="dispatch_batches"):
        one_step(tmp_path, make_groups(2), accelerator_config={"dispatch_batches": True})


def test_ligers_kernels_stay_and_its_loss_goes(tmp_path):
    """On a CPU its layer kernels do not run; what is left is what would replace the loss."""
    args = config(tmp_path, use_liger_kernel=True, liger_kernel_config={"rope": False})
    assert args.liger_kernel_config == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    pytest.importorskip("liger_kernel")
    layers_off = {"rope": False, "rms_norm": False, "swiglu": False}
    groups = make_groups(4, 3)
    found = one_step(tmp_path, groups, use_liger_kernel=True, liger_kernel_config=layers_off)
    assert relative(found.gradient, one_step(tmp_path, groups).gradient) < 1e-6


@pytest.mark.slow
def test_compiled_models_have_the_same_step(tmp_path):
    groups = make_groups(4, 3)
    plain = one_step(tmp_path, groups)
    compiled = one_step(tmp_path, groups, torch_compile=True, torch_compile_backend="eager")
    assert compiled.loss == pytest.approx(plain.loss, rel=1e-5)
    assert relative(compiled.gradient, plain.gradient) < 1e-5


def test_split_batches_neftune_and_counted_tokens_pass(tmp_path):
    """Noise on the embeddings is drawn per row; without any, the step is the plain one."""
    groups = make_groups(4, 3)
    torch.manual_seed(0)
    noisy = one_step(
        tmp_path,
        groups,
        neftune_noise_alpha=5.0,
        include_num_input_tokens_seen="all",
        accelerator_config={"split_batches": True},
    )
    plain = one_step(tmp_path, groups)
    assert noisy.trainer.state.num_input_tokens_seen > 0
    assert 0 < abs(noisy.loss / plain.loss - 1) < 0.1
    silent = one_step(tmp_path, groups, neftune_noise_alpha=0.0)
    assert silent.loss == pytest.approx(plain.loss, rel=1e-6)


def test_prompt_learning_is_refused_by_name(tmp_path):
    from peft import PrefixTuningConfig, PromptTuningConfig

    for adapter in (
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ):
        with pytest.raises(ValueError, match="virtual tokens"):
            MultiResponseSFTTrainer(
                model=tiny.llama(),
                args=config(tmp_path),
                train_dataset=make_groups(2),
                processing_class=tiny.tokenizer(),
                peft_config=adapter,
            )


def test_activated_lora_is_expanded(tmp_path, caplog):
    """It starts at zero, so the proof cannot see that it reads the row."""
    from peft import LoraConfig

    def build(layout):
        return MultiResponseSFTTrainer(
            model=tiny.llama(),
            args=config(tmp_path, layout=layout, prefix_check=True, max_steps=1),
            train_dataset=make_groups(4, 3),
            processing_class=tiny.tokenizer(),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, alora_invocation_tokens=[20, 21]),
        )

    with pytest.raises(ValueError, match="alora_invocation_tokens"):
        build("shared_prefix")
    trainer = build("auto")
    assert trainer.layout == "expanded"
    assert "activated LoRA" in caplog.text
    trainer.train()
    assert losses(trainer)[0] > 0


def test_reentrant_checkpointing_is_refused_where_layers_reuse_keys_and_values(tmp_path):
    """It loses their gradient, in any trainer: of a small Gemma 4, by 0.30 of its norm."""

    def build_trainer(**options):
        return MultiResponseSFTTrainer(
            model=build("gemma4", vocab_size=1024, vocab_size_per_layer_input=1024),
            args=config(tmp_path, max_steps=1, gradient_checkpointing=True, **options),
            train_dataset=make_groups(4, 3),
            processing_class=tiny.tokenizer(),
        )

    with pytest.raises(ValueError, match="reuses keys and values in its last 2 layers.*use_reentrant: false"):
        build_trainer(gradient_checkpointing_kwargs={"use_reentrant": True})
    build_trainer().train()
