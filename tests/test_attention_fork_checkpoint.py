"""The forked cache under gradient checkpointing: equal to one pair at a time, and less held for the backward pass."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import tiny
from helpers.families import (
    PAD,
    STATEFUL,
    build,
    gradient,
    one_by_one,
    plain_compute,
    random_group,
    rows_loss,
)
from helpers.training import GradientTap, config, losses, make_groups, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mrt_plugin import MultiResponseSFTTrainer
from mrt_plugin.attention import NotShareable
from mrt_plugin.attention.fork import ForkBackend
from mrt_plugin.layout.rows import build_rows

# A system text with prompts of two lengths below it, prompts of one shared token, pairs alone.
PACKED = [
    [random_group(17, [3, 15, 1]), random_group(2, [4]), random_group(17, [6, 2], seed=1)],
    [random_group(20, [2, 9]), random_group(2, [1, 1]), random_group(1, [2, 12])],
]
GROUPS = [group for row in PACKED for group in row]


def assert_equal_to_one_by_one(reference: Any, model: Any, packed: list[list[Any]] = PACKED) -> None:
    groups = [group for row in packed for group in row]
    expected, expected_gradient = gradient(reference, lambda: one_by_one(reference, groups))
    backend, rows = ForkBackend(model.config), build_rows(packed, PAD)
    backend.prepare_model(model)
    found, found_gradient = gradient(model, lambda: rows_loss(backend, model, rows))
    assert abs(found / expected - 1) < 1e-5
    assert (found_gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("name", [*STATEFUL, "llama", "gemma3", "gemma3n", "gemma4", "llama4", "gpt_oss"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_equals_one_pair_at_a_time(name: str, use_reentrant: bool) -> None:
    model = build(name)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_equal_to_one_by_one(build(name, attn_implementation="eager"), model)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_groups_in_any_packing(data: st.DataObject) -> None:
    group = st.builds(
        random_group, st.integers(1, 40), st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 9)
    )
    packed = data.draw(st.lists(st.lists(group, min_size=1, max_size=3), min_size=1, max_size=2))
    name = data.draw(st.sampled_from(["qwen3_5", "falcon_h1", "lfm2"]))
    model = build(name)
    model.gradient_checkpointing_enable({"use_reentrant": data.draw(st.booleans())})
    assert_equal_to_one_by_one(build(name), model, packed)


@pytest.mark.parametrize("name", ["qwen3_5", "zamba2"])
def test_some_layers_only(name: str) -> None:
    model = build(name)
    model.gradient_checkpointing_enable({"use_reentrant": True}, every_n_layers=2)
    assert len({module.gradient_checkpointing for module in model.model.layers}) == 2
    assert_equal_to_one_by_one(build(name), model)


def adapted(model: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    adapter = LoraConfig(r=4, init_lora_weights=False, **{"target_modules": "all-linear", **options})
    return get_peft_model(model, adapter).train()


def checkpointed(model: Any, use_reentrant: bool) -> Any:
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    return model


@pytest.mark.parametrize(("name", "modules"), [("qwen3_5", "all-linear"), ("falcon_h1", ["in_proj", "q_proj"])])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_lora(name: str, modules: Any, use_reentrant: bool) -> None:
    reference, model = (adapted(build(name), target_modules=modules) for _ in range(2))
    assert_equal_to_one_by_one(reference, checkpointed(model, use_reentrant))


def test_dropout_is_the_same_in_the_backward_pass() -> None:
    model = adapted(build("qwen3_5"), lora_dropout=0.5)
    backend, rows = ForkBackend(model.config), build_rows(PACKED, PAD)

    def step() -> Any:
        torch.manual_seed(2)
        return gradient(model, lambda: rows_loss(backend, model, rows))

    expected, expected_gradient = step()
    checkpointed(model, True)
    found, found_gradient = step()
    assert found == expected
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_qlora(tmp_path: Any, use_reentrant: bool) -> None:
    pytest.importorskip("bitsandbytes")
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "linear_value_head_dim": 16}
    build("qwen3_5", **wide).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    load = partial(AutoModelForCausalLM.from_pretrained, quantization_config=quantization, dtype=torch.float32)
    assert_equal_to_one_by_one(adapted(load(tmp_path)), checkpointed(adapted(load(tmp_path)), use_reentrant))


@pytest.mark.parametrize("name", ["qwen3_5", "zamba2"])
def test_layers_run_again_and_hold_less(name: str) -> None:
    """With checkpointing each layer runs twice, and what is held does not grow with the copies of a prompt."""

    def held(model: Any, responses: int) -> tuple[int, Counter[int]]:
        runs, storages = Counter[int](), dict[int, int]()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        for module in model.modules():
            if type(module).__name__.endswith("MLP"):
                module.register_forward_pre_hook(lambda module, *_: runs.update([id(module)]))
        rows = build_rows([[random_group(200, [5] * responses)]], PAD)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = rows_loss(ForkBackend(model.config), model, rows)
        before = Counter(runs)
        loss.backward()
        return sum(storages.values()), runs - before

    plain, again = build(name), build(name)
    again.gradient_checkpointing_enable()
    few, many = held(plain, 2)[0], held(plain, 20)[0]
    recomputed_few, runs = held(again, 2)
    recomputed_many, _ = held(again, 20)
    assert runs
    assert set(runs.values()) == {2}, "once in the forward of the prompt, and once in that of the responses"
    assert recomputed_few < few / 2
    assert recomputed_many - recomputed_few < (many - few) / 10


def test_the_model_is_left_as_it_was() -> None:
    """After a step, and after one that failed; in evaluation nothing is recomputed, and the cache is used."""
    model = build("qwen3_5")
    model.gradient_checkpointing_enable()
    own = model.model.layers[0].forward
    vars(model.model.layers[0])["forward"] = own  # as accelerate's hooks replace it
    backend, rows = ForkBackend(model.config), build_rows(PACKED, PAD)
    rows_loss(backend, model, rows).backward()

    def fails(*args: Any) -> Any:
        raise RuntimeError("out of memory")

    hook = model.lm_head.register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        rows_loss(backend, model, rows)
    hook.remove()
    assert [module for module in model.modules() if "forward" in vars(module)] == [model.model.layers[0]]
    assert model.model.layers[0].forward is own
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
    model.eval()
    with torch.no_grad():
        evaluated = rows_loss(backend, model, rows)
        expected = one_by_one(model, GROUPS)
    assert abs(evaluated / expected - 1) < 1e-5


def test_other_checkpointing_is_refused() -> None:
    wrapped, foreign, old = build("llama"), build("llama"), build("llama")
    apply_activation_checkpointing(wrapped, check_fn=lambda module: isinstance(module, LlamaDecoderLayer))
    foreign.gradient_checkpointing_enable()
    for layer in foreign.model.layers:
        layer._gradient_checkpointing_func = lambda function, *args, **kwargs: checkpoint(function, *args, **kwargs)
    old.model.gradient_checkpointing = True  # of the model alone, which recomputes its layers itself
    backend, rows = ForkBackend(foreign.config), build_rows(PACKED, PAD)
    for model, found in ((wrapped, "CheckpointWrapper"), (foreign, "another library's"), (old, "LlamaForCausalLM")):
        for use in (backend.prepare_model, lambda model: backend.token_nll(model, rows, plain_compute(model))):
            with pytest.raises(NotShareable, match=f"{found}.*layout=expanded"):
                use(model)


# ---------------------------------------------------------------- the trainer


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_the_trainer_shares_with_checkpointing(lora: bool, tmp_path: Any) -> None:
    """Nothing is set but checkpointing, which is on by default; the proof runs with it."""
    groups: Dataset = make_groups(6, 3, weights=True)

    def step(**options: Any) -> tuple[Any, float, torch.Tensor]:
        tap = GradientTap()
        model = build("qwen3_5", vocab_size=1024, bos_token_id=None, eos_token_id=None, pad_token_id=None)
        torch.manual_seed(1)
        trainer = MultiResponseSFTTrainer(
            model=model,
            args=config(tmp_path, max_steps=1, per_device_train_batch_size=6, **options),
            train_dataset=groups,
            processing_class=tiny.tokenizer(),
            peft_config=LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear") if lora else None,
            callbacks=[tap],
        )
        trainer.train()
        return trainer, losses(trainer)[0], tap.gradients[0]

    _, expected, expected_gradient = step(layout="expanded", gradient_checkpointing=False)
    for kwargs in (None, {"use_reentrant": True}, {"use_reentrant": False}):
        trainer, loss, found = step(
            gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs, layout="auto", prefix_check=True
        )
        assert (trainer.layout, trainer._backend.name) == ("shared_prefix", "fork")
        assert loss == pytest.approx(expected, rel=1e-5)
        assert relative(found, expected_gradient) < 1e-4
