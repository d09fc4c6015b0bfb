"""Prepare the weights for `axolotl merge-lora`: a QLoRA adapter belongs to the 4-bit weights it was trained on."""

from typing import Any

import torch


def round_to_4bit(model: torch.nn.Module, bnb_config_kwargs: dict[str, Any] | None = None) -> int:
    """Round the weights that QLoRA quantizes to their 4-bit values, in place, and return the number of layers.

    QLoRA quantizes every linear layer except the output head, and no embedding. Axolotl's own merging (0.19.0,
    `merge_method: memory_efficient`) also rounds the head and the embeddings, and without double quantization. The
    merged model then differs from the one that was trained. Merging into weights that were not rounded at all also
    gives a different model.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    chosen = bnb_config_kwargs or {}
    skipped = set(chosen.get("llm_int8_skip_modules") or [])
    head = model.get_output_embeddings()  # type: ignore[operator]
    rounded = 0
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or module is head or skipped & set(name.split(".")):
            continue
        quantized, state = quantize_4bit(
            module.weight.data,
            quant_type=chosen.get("bnb_4bit_quant_type", "nf4"),
            compress_statistics=chosen.get("bnb_4bit_use_double_quant", True),
        )
        module.weight.data = dequantize_4bit(quantized, state).to(module.weight.dtype)
        rounded += 1
    return rounded
