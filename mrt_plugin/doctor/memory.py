"""Estimate the peak memory of a training step from shapes alone. Nothing is loaded.

    peak = weights + training state + activations + logits + dequantised weight

* weights: parameters of the quantised linear layers times 0.516 bytes in NF4 with double quantisation, or 1 byte in 8
  bit; all others times the dtype's bytes. The 0.516 bytes are 4 bits, 8 bits of scale per 64 parameters, and 32 bits
  per 16,384.
* training state: trained parameters times (gradient + optimizer). Those of an adapter are fp32, and their weights are
  counted here too.
* activations: the tensors that the backward pass needs from one forward pass. They are counted, not guessed: the model
  runs on PyTorch's meta device, and the tensors that autograd saves are added up. With gradient checkpointing this is
  the input of every layer plus all saved tensors of one layer. Without it, this is all saved tensors of every layer.
* logits: of one chunk of trained tokens (`mrt_plugin.loss.token_nll.chunk_tokens`), with their gradient, in fp32.
* dequantised weight: the largest quantised layer, once, in the compute dtype.

Not included are the CUDA context (0.3 to 0.6 GiB), allocator fragmentation, kernel workspaces, a mask that attention
materialises, and the balance between GPUs. It is an estimate and is always shown as one.
"""

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
    """How a model is fine-tuned, as far as it affects memory."""

    bits: int | None = None
    """4 or 8 if the linear layers are quantised."""
    lora_rank: int | None = None
    """None for full fine-tuning."""
    lora_targets: str | Sequence[str] = "all-linear"
    dtype: torch.dtype = torch.bfloat16
    optimizer_bytes: float = 8.0
    """Bytes per trained fp32 parameter: 8 for AdamW, 2 for 8-bit AdamW, 0 for SGD. Halved for training in 16 bit."""
    gradient_checkpointing: bool = True


@dataclass(frozen=True)
class MemoryEstimate:
    """Estimated peak memory of a training step in GiB, by component."""

    weights: float
    training_state: float
    activations: float
    logits: float
    dequantised: float
    parameters: int
    trained_parameters: int

    @property
    def total(self) -> float:
        """The estimated peak."""
        return self.weights + self.training_state + self.activations + self.logits + self.dequantised


def estimate_memory(config: PretrainedConfig, method: Method, *, rows: int, length: int) -> MemoryEstimate:
    """Estimate the peak memory of a training step with a forward pass of `rows` x `length` tokens.

    Raises:
        ValueError: for an architecture that does not run on the meta device.

    Example:

    ```python
    config = AutoConfig.from_pretrained("path/to/model")
    estimate = estimate_memory(config, Method(bits=4, lora_rank=16), rows=1, length=4096)
    print(f"about {estimate.total:.1f} GiB")
    ```
    """
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=method.dtype, attn_implementation="mrt_counting"
        )
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
        adapter = LoraConfig(r=method.lora_rank, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        state = trained * (4 + 4 + method.optimizer_bytes)

    vocabulary = config.get_text_config().vocab_size
    return MemoryEstimate(
        weights=weights / GIB,
        training_state=state / GIB,
        activations=_activations(model, config, method, rows, length) / GIB,
        logits=min(chunk_tokens(vocabulary), rows * length) * vocabulary * 2 * 4 / GIB,
        dequantised=dequantised / GIB,
        parameters=parameters,
        trained_parameters=trained,
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


def _activations(model: nn.Module, config: PretrainedConfig, method: Method, rows: int, length: int) -> float:
    try:
        saved = _saved_bytes(model, rows, length)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise ValueError(f"{config.model_type} does not run on the meta device: {error}") from error
    if not method.gradient_checkpointing:
        return saved
    text = config.get_text_config()
    layers = text.num_hidden_layers
    return layers * rows * length * text.hidden_size * method.dtype.itemsize + saved / layers


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
