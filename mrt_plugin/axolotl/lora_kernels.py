"""Axolotl's LoRA kernels, made whole for the small model of the proof."""

from typing import Any


def give_kernels_to_new_models(cfg: Any) -> None:
    """Let a new model of the recipe's family run after Axolotl has put its LoRA kernels in.

    They rewrite an attention class to call `apply_qkv` and `apply_o`, which they give to the loaded model's layers
    only. The proof builds a small model of the same class: its layers get the plain projections.
    """
    if not (cfg.lora_qkv_kernel or cfg.lora_o_kernel):
        return
    from axolotl.monkeypatch import lora_kernels

    attention: Any = lora_kernels.get_attention_cls_from_config(cfg)
    attention.apply_qkv = lora_kernels.original_apply_qkv_optional_v
    attention.apply_o = lora_kernels.original_apply_o
