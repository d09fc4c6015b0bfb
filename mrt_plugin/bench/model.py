"""The model a benchmark trains: a small random Llama or hybrid model, one of a known size, or the user's own."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mrt_plugin.encoding import prepare_tokenizer
from mrt_plugin.models.tiny_model import build_tokenizer, random_hybrid, random_llama

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

SIZES: dict[str, tuple[type[PreTrainedModel], type[PreTrainedConfig], dict[str, Any]]] = {
    "llama-8b": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
    "qwen-4b": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {
            "vocab_size": 151_936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
    ),
}
"""The sizes of Llama 3.1 8B and Qwen3 4B, from their published configurations."""


@dataclass(frozen=True)
class ModelChoice:
    path: str | None = None
    """A path or hub id; by default the random Llama."""
    hybrid: bool = False
    """Take a random Qwen 3.5, with layers that carry a state along the row, instead of the random Llama."""
    vocabulary: int = 1000
    """Of the small random models. At 1,000 the output head of the Llama is 9 % of its body, as in an 8B model."""
    size: str | None = None
    """Take a random model of the size of a known one: a name in `SIZES`."""
    layers: int | None = None
    """Of the model of that size; by default all of them."""
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


def sized_config(size: str, layers: int | None = None) -> PreTrainedConfig:
    """Return the configuration of a known size.

    Raises:
        ValueError: for an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r} is unknown: choose {' or '.join(SIZES)}.")
    make: Any
    _, make, settings = SIZES[size]
    depth = {} if layers is None else {"num_hidden_layers": layers}
    config: PreTrainedConfig = make(**{**settings, **depth}, max_position_embeddings=1 << 20, pad_token_id=0)
    return config


def random_state(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return random weights for a model on the meta device, without the memory of the whole model.

    All layers have the same weights, and large ones repeat a block of normal numbers: speed does not depend on them.
    """
    drawn: dict[str, torch.Tensor] = {}
    state = {}
    # The prime length keeps the rows of a weight different. Drawing a billion numbers would take minutes.
    block = torch.empty(4_194_301).normal_(0, 0.02, generator=torch.Generator().manual_seed(0)).to(dtype)
    for name, weight in model.state_dict().items():
        place = re.sub(r"\.layers\.\d+\.", ".layers.0.", name)
        if place not in drawn:
            if weight.dim() == 1:
                drawn[place] = torch.ones(weight.shape, dtype=dtype)  # of a norm
            else:
                copies = -(-weight.numel() // len(block))
                drawn[place] = block.repeat(copies)[: weight.numel()].view(weight.shape)
        state[name] = drawn[place]
    return state


def _random(choice: ModelChoice, device: str, dtype: torch.dtype, how: dict[str, Any]) -> Any:
    """Return a random model. Its layers go to the device, and to 4 bit, one after the other."""
    if choice.size is None:
        if choice.layers is not None:
            raise ValueError(f"layers={choice.layers} is for a model of a known size: choose {' or '.join(SIZES)}.")
        if choice.load_in_4bit:
            raise ValueError("The small random model is not loaded in 4 bit: give a model, or one of a known size.")
        small: Any = (random_hybrid if choice.hybrid else random_llama)(choice.vocabulary)
        return small.to(device, dtype)
    if choice.hybrid:
        raise ValueError(f"hybrid=True is for the small random model, and size={choice.size!r} gives another one.")
    config = sized_config(choice.size, choice.layers)
    family: Any = SIZES[choice.size][0]
    with torch.device("meta"):
        empty = family(config)
    return family.from_pretrained(None, config=config, state_dict=random_state(empty, dtype), **how)


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
    how: dict[str, Any] = {"dtype": dtype, "device_map": device}
    if choice.load_in_4bit:
        in_4bit: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        how["quantization_config"] = BitsAndBytesConfig(**in_4bit, bnb_4bit_compute_dtype=dtype)
    if choice.path is None:
        tokenizer = build_tokenizer(["Nothing is read from this."], 300)
        model = _random(choice, device, dtype, how)
    else:
        if choice.hybrid or choice.size is not None or choice.layers is not None:
            wrong = "hybrid=True" if choice.hybrid else f"size={choice.size!r} with layers={choice.layers}"
            raise ValueError(f"{wrong} is for a random model, and path={choice.path!r} gives another one.")
        tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(choice.path))
        model = AutoModelForCausalLM.from_pretrained(choice.path, **how)
    if choice.lora or choice.load_in_4bit:
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    return BenchModel(model, tokenizer, dtype == torch.bfloat16, gradient_checkpointing)
