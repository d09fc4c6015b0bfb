"""Open a model for measuring or sampling, with its tokenizer, optionally with an adapter or in 4 bit."""

import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase

from mrt_plugin.encoding import Encoder, prepare_tokenizer
from mrt_plugin.models.log_likelihood import Model
from mrt_plugin.models.named_model import NamedModel
from mrt_plugin.options import PromptFormat


def open_model(
    named: NamedModel,
    *,
    tokenizer: str | Path | None = None,
    prompt_format: PromptFormat = "auto",
    **how: Any,
) -> tuple[Model, Encoder]:
    """Open a model and the encoder of its tokenizer. `how` are the options of `load_model`."""
    if named.path is None:
        raise ValueError(f"{named.name} is known by its samples alone: give its folder or name.")
    encoder = Encoder(load_tokenizer(named.path, named.adapter, tokenizer), prompt_format=prompt_format)
    return load_model(named.path, named.adapter, **how), encoder


def load_model(
    model: str | Path,
    adapter: str | Path | None = None,
    *,
    load_in_4bit: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> Model:
    """Load a causal language model in evaluation mode, by default on the first GPU, else on the CPU.

    In 4 bit it is NF4 with double quantisation, as in QLoRA training, so an adapter has the same base weights.
    """
    nf4: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **nf4) if load_in_4bit else None
    place = {"": torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))}
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, device_map=place, quantization_config=four_bit)
    return (base if adapter is None else _with_adapter(base, adapter, model)).eval()


def load_tokenizer(
    model: str | Path, adapter: str | Path | None = None, tokenizer: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """Load `tokenizer` if given, else the one that training saved beside the adapter, else the model's."""
    beside = adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file()
    return prepare_tokenizer(AutoTokenizer.from_pretrained(tokenizer or (adapter if beside else model)))


def _with_adapter(base: Model, adapter: str | Path, model: str | Path) -> PeftModel:
    """Apply the adapter, and check that every weight fits. PEFT ignores misplaced weights, and so a wrong base."""

    def misfit(why: str) -> ValueError:
        return ValueError(
            f"The adapter {adapter} does not fit {model}: {why}. Give the base it was trained on "
            "(base_model_name_or_path in its adapter_config.json)."
        )

    try:
        loaded = PeftModel.from_pretrained(base, str(adapter))  # type: ignore[arg-type]
    except (RuntimeError, ValueError) as error:
        if "size mismatch" not in str(error) and "Target modules" not in str(error):
            raise
        raise misfit(str(error).strip().splitlines()[-1].strip()) from error
    path = Path(adapter) / "adapter_model.safetensors"
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            saved = {key for key in file.keys() if "lora_" in key}  # noqa: SIM118
        placed = {key for key in get_peft_model_state_dict(loaded) if "lora_" in key}
        if saved != placed:
            what = f"{len(saved - placed)} of its weights find no place there, {len(placed - saved)} are missing"
            raise misfit(f"{what}, {min(saved ^ placed)} for example")
    return loaded


def keep_trainable(model: Any) -> None:
    """Stop bitsandbytes from repacking a model's 4-bit weights for inference."""
    # On CPUs with AVX512-BF16, bitsandbytes (0.50.2) repacks a 4-bit layer's weights when the layer first runs in
    # evaluation mode. From then on its output has no gradient with respect to its input, in training too.
    bitsandbytes = sys.modules.get("bitsandbytes")
    if bitsandbytes is None:
        return
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and module.weight.device.type == "cpu":
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                raise ValueError(
                    "This 4-bit model has run in evaluation mode on CPU, so bitsandbytes repacked its weights and its "
                    "gradients would be wrong. Load the model again and train it before anything else."
                )
            module.support_avx512bf16_for_cpu = False
