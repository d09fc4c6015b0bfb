"""Estimate the peak memory of a training step from shapes alone. `docs/doctor-reference.md` explains each part."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig

from mrt_plugin.loss.token_nll import chunk_tokens

GIB = 2**30
QUANTISED_BYTES = {4: 0.5 + 1 / 64 + 4 / (64 * 256), 8: 1.0}
"""Bytes per parameter in NF4 with double quantisation (Dettmers et al., arXiv 2305.14314, section 3) and in int8."""


@dataclass(frozen=True)
class Method:
    bits: int | None = None
    lora_rank: int | None = None
    lora_targets: str | Sequence[str] = "all-linear"
    dtype: torch.dtype = torch.bfloat16
    optimizer_bytes: float = 8.0
    """Bytes per trained fp32 parameter: 8 for AdamW, 2 for 8-bit AdamW, 0 for SGD. Halved for training in 16 bit."""
    gradient_checkpointing: bool = True


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated peak memory of a training step in GiB: the training state has gradients, optimizer state and adapters,
    the logits are of one chunk of trained tokens, dequantised is the largest quantised layer."""

    weights: float
    training_state: float
    activations: float
    logits: float
    dequantised: float
    parameters: int
    trained_parameters: int

    @property
    def total(self) -> float:
        return self.weights + self.training_state + self.activations + self.logits + self.dequantised


def estimate_memory(config: PretrainedConfig, method: Method, *, rows: int, length: int) -> MemoryEstimate:
    """Estimate the peak memory of a training step with a forward pass of `rows` x `length` tokens."""
    with torch.device("meta"):
        own, kernel = copy.deepcopy(config), "mrt_counting"
        model: Any = AutoModelForCausalLM.from_config(own, dtype=method.dtype, attn_implementation=kernel)
    size = method.dtype.itemsize
    head = model.get_output_embeddings()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    quantised = sum(linear.weight.numel() for linear in linears) if method.bits else 0
    weights = quantised * QUANTISED_BYTES.get(method.bits or 0, 0.0) + (parameters - quantised) * size
    dequantised = max(linear.weight.numel() for linear in linears) * size if method.bits else 0

    if method.lora_rank is None:
        trained = parameters
        state = trained * (size + method.optimizer_bytes * size / 4)
    else:
        targets = method.lora_targets if isinstance(method.lora_targets, str) else list(method.lora_targets)
        model = get_peft_model(model, LoraConfig(r=method.lora_rank, target_modules=targets, task_type="CAUSAL_LM"))
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        state = trained * (4 + 4 + method.optimizer_bytes)

    text = config.get_text_config()
    logits = min(chunk_tokens(text.vocab_size), rows * length) * text.vocab_size * 2 * 4
    try:
        saved = _saved_bytes(model, rows, length)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise ValueError(f"{config.model_type} does not run on the meta device: {error}") from error
    if method.gradient_checkpointing:  # the input of every layer, and all saved tensors of one layer
        layers = text.num_hidden_layers
        saved = layers * rows * length * text.hidden_size * size + saved / layers
    return MemoryEstimate(
        weights / GIB, state / GIB, saved / GIB, logits / GIB, dequantised / GIB, parameters, trained
    )


class _SavesWhatAKernelSaves(torch.autograd.Function):
    """Saves for autograd what a fused attention kernel saves: queries, keys, values, output and a sum per query."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, sums)
        return output


def _counting_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    output: torch.Tensor = _SavesWhatAKernelSaves.apply(query, key, value)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("mrt_counting", _counting_attention)


def _saved_bytes(model: nn.Module, rows: int, length: int) -> float:
    """Return the bytes that autograd saves in a forward pass of the body, without parameters, each storage once."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            seen[storage] = tensor  # kept, so that the storage's address is not reused
        return tensor

    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    hook = embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())
    input_ids = torch.zeros((rows, length), dtype=torch.int64, device="meta")
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=input_ids, use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return float(sum(tensor.untyped_storage().nbytes() for tensor in seen.values()))
