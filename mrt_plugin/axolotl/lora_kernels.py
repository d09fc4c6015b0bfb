"""Make Axolotl's LoRA kernels work for the small model of the proof."""

from typing import Any


def give_kernels_to_new_models(cfg: Any) -> None:
    """Let a new model of the recipe's family run after Axolotl has installed its LoRA kernels.

    The kernels rewrite an attention class to call `apply_qkv` and `apply_o`. Axolotl gives these methods only to the
    layers of the loaded model. The proof builds a small model of the same class, and its layers get the plain
    projections here.
    """
    if not (cfg.lora_qkv_kernel or cfg.lora_o_kernel):
        return
    from axolotl.monkeypatch import lora_kernels

    attention: Any = lora_kernels.get_attention_cls_from_config(cfg)
    attention.apply_qkv = lora_kernels.original_apply_qkv_optional_v
    attention.apply_o = lora_kernels.original_apply_o
