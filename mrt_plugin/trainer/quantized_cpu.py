"""4-bit models on CPU: keep them trainable after an evaluation."""

import sys
from typing import Any


def keep_trainable(model: Any) -> None:
    """Stop bitsandbytes from repacking a model's 4-bit weights for inference.

    On CPUs with AVX512-BF16, bitsandbytes (0.50.2) repacks a 4-bit layer's weights the first time that the layer runs
    in evaluation mode. It does not undo this for training. From then on the layer's output has no gradient with
    respect to its input. After one evaluation the adapters of a two-layer Llama had gradients that were wrong by 0.30
    of their norm. On other hardware this changes nothing.

    Raises:
        ValueError: if the weights were already repacked. Undoing it is lossy, so the model must be loaded again.
    """
    bitsandbytes = sys.modules.get("bitsandbytes")
    if bitsandbytes is None:
        return
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and module.weight.device.type == "cpu":
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                raise ValueError(
                    "This 4-bit model has run in evaluation mode on CPU, and bitsandbytes repacked its weights for "
                    "inference only: its gradients would be wrong. Load the model again and train it before anything "
                    "else."
                )
            module.support_avx512bf16_for_cpu = False
