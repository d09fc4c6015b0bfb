"""4-bit models on CPU: keep them trainable after an evaluation."""

import sys
from typing import Any


def keep_trainable(model: Any) -> None:
    """Tell bitsandbytes not to repack a model's 4-bit weights for inference.

    On CPUs with AVX512-BF16, bitsandbytes (0.50.2) repacks a 4-bit layer's weights the first time that it runs in
    evaluation mode, and never back: what it computes from then on has no gradient with respect to its input. After one
    evaluation the adapters of a two-layer Llama had gradients that were wrong by 0.30 of their norm. Elsewhere this
    changes nothing.
    """
    bitsandbytes = sys.modules.get("bitsandbytes")
    if bitsandbytes is None:
        return
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and module.weight.device.type == "cpu":
            module.support_avx512bf16_for_cpu = False
            module.state_dict()  # as it saves weights unpacked, it unpacks those that were packed before
