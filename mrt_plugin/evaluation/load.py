"""A model to be measured: a folder or name, with or without an adapter, in 4 bit or not."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mrt_plugin.evaluation.log_likelihood import Model


def load_model(
    model: str | Path,
    adapter: str | Path | None = None,
    *,
    load_in_4bit: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> Model:
    """Load a causal language model in evaluation mode.

    Args:
        model: folder or hub name of the base model, or of a merged model.
        adapter: folder of a PEFT adapter to put on it.
        load_in_4bit: NF4 with double quantisation, as QLoRA trains: an adapter is measured on what it was trained on.
        dtype: of the computation, and of the weights that are not quantised.
        device: where to; by default the first GPU, else the CPU.

    Example:

    ```python
    model = load_model("path/to/base", adapter="outputs/run", load_in_4bit=True)
    ```
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    base = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=dtype,
        device_map={"": place},
        quantization_config=four_bit if load_in_4bit else None,
    )
    loaded = base if adapter is None else PeftModel.from_pretrained(base, str(adapter))
    return loaded.eval()
