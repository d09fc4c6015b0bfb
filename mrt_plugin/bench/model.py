"""The model a benchmark trains: a small random Llama or hybrid model, or the user's own."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from mrt_plugin.encoding import prepare_tokenizer
from mrt_plugin.models.tiny_model import build_tokenizer, random_hybrid, random_llama

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelChoice:
    path: str | None = None
    """A path or hub id; by default the random Llama."""
    hybrid: bool = False
    """Take a random Qwen 3.5, with layers that carry a state along the row, instead of the random Llama."""
    vocabulary: int = 1000
    """Of the random model. At 1,000 the output head of the Llama is 9 % of its body, as in an 8B model."""
    dtype: str = "auto"
    """`float32` or `bfloat16`; `auto` is float32 on a CPU and bfloat16 on a GPU that has it."""
    load_in_4bit: bool = False
    lora: bool = False
    """Train LoRA adapters of rank 16 on all linear layers instead of all weights, as always in 4 bit."""


@dataclass(frozen=True)
class BenchModel:
    model: Any
    tokenizer: Any
    bf16: bool
    gradient_checkpointing: bool = False

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.bf16 else "float32"


def load_model(choice: ModelChoice, device: str, *, gradient_checkpointing: bool = False) -> BenchModel:
    """Return the model on its device, and a tokenizer. Only the special tokens of the tokenizer are used."""
    name = choice.dtype
    if name == "auto":
        name = "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r} is unknown: choose auto, {' or '.join(DTYPES)}.")
    dtype = DTYPES[name]
    tokenizer: Any
    model: Any
    if choice.path is None:
        if choice.load_in_4bit:
            raise ValueError("A random model is not loaded in 4 bit: give a model, by path or name.")
        tokenizer = build_tokenizer(["Nothing is read from this."], 300)
        model = (random_hybrid if choice.hybrid else random_llama)(choice.vocabulary)
        model.to(device, dtype)
    else:
        if choice.hybrid:
            raise ValueError(f"hybrid=True is for a random model, and path={choice.path!r} gives another one.")
        tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(choice.path))
        how: dict[str, Any] = {"dtype": dtype, "device_map": device}
        if choice.load_in_4bit:
            in_4bit: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
            how["quantization_config"] = BitsAndBytesConfig(**in_4bit, bnb_4bit_compute_dtype=dtype)
        model = AutoModelForCausalLM.from_pretrained(choice.path, **how)
    if choice.lora or choice.load_in_4bit:
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    return BenchModel(model, tokenizer, dtype == torch.bfloat16, gradient_checkpointing)
