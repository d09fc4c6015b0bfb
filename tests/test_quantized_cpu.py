"""4-bit models on CPU stay trainable after an evaluation."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mrt_plugin.trainer.checks import keep_trainable


def load(path):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


TOKENS = torch.arange(40).reshape(2, 20) + 10


def evaluate(model):
    model.eval()
    with torch.no_grad():
        model(input_ids=TOKENS, labels=TOKENS)


def test_an_evaluation_leaves_the_gradients_alone(tiny_model_dir):
    model = load(tiny_model_dir)

    def gradient():
        model.train()
        model.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    before = gradient()
    keep_trainable(model)
    evaluate(model)
    # Without it the difference is 0.3 of the norm on CPUs with AVX512-BF16, and 0 on others.
    assert (gradient() - before).norm() <= 1e-6 * before.norm()


def test_a_model_that_was_evaluated_before_is_refused(tiny_model_dir):
    model = load(tiny_model_dir)
    evaluate(model)
    layer = next(module for module in model.modules() if type(module).__name__ == "Linear4bit")
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):  # what this CPU makes of it
        with pytest.raises(ValueError, match="Load the model again"):
            keep_trainable(model)
    else:
        keep_trainable(model)
