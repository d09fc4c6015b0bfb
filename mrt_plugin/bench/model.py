"""The model a benchmark trains: a small random Llama, or the user's own."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from mrt_plugin.encoding import prepare_tokenizer
from mrt_plugin.models.tiny_model import build_tokenizer, random_llama

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelChoice:
    """Which model to use, and how to load and train it."""

    path: str | None = None
    """A path or hub id; None for the random Llama."""
    vocabulary: int = 1000
    """Vocabulary size of the random Llama. At 1,000 its output head is 9 % of its body, as in an 8B model."""
    dtype: str = "auto"
    """`float32` or `bfloat16`; `auto` is float32 on a CPU and bfloat16 on a GPU that has it."""
    load_in_4bit: bool = False
    """Load the weights in 4 bit (NF4); train LoRA adapters."""
    lora: bool = False
    """Train LoRA adapters of rank 16 on all linear layers instead of all weights."""


def resolve_dtype(choice: ModelChoice, device: str) -> str:
    """Return `float32` or `bfloat16`.

    Raises:
        ValueError: if the name is unknown.
    """
    if choice.dtype == "auto":
        return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"
    if choice.dtype not in DTYPES:
        raise ValueError(f"dtype={choice.dtype!r} is unknown: choose auto, {' or '.join(DTYPES)}.")
    return choice.dtype


def load_model(choice: ModelChoice, device: str) -> tuple[Any, Any]:
    """Return the model on its device, and a tokenizer. Only the tokenizer's special tokens are used.

    Raises:
        ValueError: if the choice contradicts itself.

    Example:

    ```python
    model, tokenizer = load_model(ModelChoice(lora=True), "cpu")
    ```
    """
    tokenizer: Any
    model: Any
    dtype = DTYPES[resolve_dtype(choice, device)]
    if choice.path is None:
        if choice.load_in_4bit:
            raise ValueError("The random Llama is not loaded in 4 bit: give a model, by path or name.")
        tokenizer = build_tokenizer(["Nothing is read from this."], 300)
        model = random_llama(choice.vocabulary)
        model.to(device, dtype)
    else:
        tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(choice.path))
        quantization = None
        if choice.load_in_4bit:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
        model = AutoModelForCausalLM.from_pretrained(
            choice.path, dtype=dtype, quantization_config=quantization, device_map=device
        )
    if choice.lora or choice.load_in_4bit:
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    return model, tokenizer
