"""Shared rows under Axolotl's LoRA kernels against plain rows without them, in a process of its own.

The kernels rewrite transformers' attention class. Those of the MLP are Triton and need a GPU.
"""

import copy
import sys

import torch
from axolotl.monkeypatch.lora_kernels import apply_lora_kernel_patches, patch_self_attn_lora
from axolotl.utils.dict import DictDefault
from peft import LoraConfig, get_peft_model

from helpers.families import PAD, build, gradient, one_by_one, random_group, rows_loss
from mrt_plugin.attention import prove
from mrt_plugin.attention.two_part import TwoPartBackend
from mrt_plugin.axolotl.plugin import give_kernels_to_new_models
from mrt_plugin.layout.rows import build_rows


def main(folder: str) -> None:
    torch.set_num_threads(1)
    base = build("llama")
    base.save_pretrained(folder)
    adapter = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, adapter)
    packed = [[random_group(17, [3, 15, 1]), random_group(2, [4])], [random_group(20, [2, 9])]]
    groups = [group for row in packed for group in row]
    plain = copy.deepcopy(model)
    expected, expected_gradient = gradient(plain, lambda: one_by_one(plain, groups))

    cfg = DictDefault(base_model=folder, lora_qkv_kernel=True, lora_o_kernel=True)
    patch_self_attn_lora(cfg)
    give_kernels_to_new_models(cfg)  # the proof builds one
    apply_lora_kernel_patches(model, cfg)
    attention = model.get_base_model().model.layers[0].self_attn
    assert type(attention).forward.__name__ == "axolotl_attn_forward"
    assert attention.apply_qkv.__func__.__module__.startswith("axolotl.kernels")
    backend = TwoPartBackend(model.config)
    backend.prepare_model(model)
    prove(model, backend, groups[0])
    rows = build_rows(packed, PAD)
    found, found_gradient = gradient(model, lambda: rows_loss(backend, model, rows))
    assert abs(found / expected - 1) < 1e-5
    assert (found_gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1])
