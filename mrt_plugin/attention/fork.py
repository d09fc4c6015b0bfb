"""The `fork` backend: run a prompt once, copy its cache, and run its responses as a batch on the copies."""

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.tensor import DTensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionLayer

from mrt_plugin.attention.backend import Compute, OwnAttention
from mrt_plugin.attention.family import NotShareable
from mrt_plugin.attention.length_rope import length_ropes
from mrt_plugin.attention.plan import Run, find_runs, group_runs
from mrt_plugin.layout.group_row import IGNORE
from mrt_plugin.layout.rows import Rows


class KeptStates(LinearAttentionLayer):  # type: ignore[misc]
    """A linear-attention cache layer that assigns its states.

    transformers copies the states into one buffer in place. Autograd rejects this, because the backward pass still
    needs the prompt's states.
    """

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """Append to the last `conv_kernel_size` inputs, and return all inputs that the convolution may read."""
        kernel = conv_states.shape[-1] if conv_kernel_size is None else conv_kernel_size
        if self.has_previous_state[state_idx]:
            full = torch.cat([self.conv_states[state_idx], conv_states], dim=-1)  # type: ignore[list-item]
        else:
            full = torch.nn.functional.pad(conv_states, (max(kernel - conv_states.shape[-1], 0), 0))
        self.dtype, self.device = conv_states.dtype, conv_states.device  # type: ignore[assignment]
        self.conv_kernel_size[state_idx] = kernel
        self.conv_states[state_idx] = full[..., -kernel:]
        self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True
        return full

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Replace the state."""
        self.device = recurrent_states.device  # type: ignore[assignment]
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states


NO_CHECKPOINTING = (
    "prefix_backend=fork: gradient checkpointing makes the model drop its cache, or fill it twice, and the loss would "
    "be wrong. Set gradient_checkpointing=False if memory allows, or use layout=expanded."
)


def recomputes(model: torch.nn.Module) -> bool:
    """Return whether training runs parts of a model's forward again in the backward pass.

    This is the case with transformers' own checkpointing and with torch's checkpointing around the layers. FSDP's
    `activation_checkpointing` and Axolotl's `activation_offloading` use the latter.
    """
    return any(
        isinstance(module, CheckpointWrapper) or getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )


class ForkBackend(OwnAttention):
    """Run one group at a time: the prompt in one forward, its responses as a batch in another.

    Gradients flow through the cache. Exact for every family that keeps all its memory of a prompt in transformers'
    cache, including families with a state along the row. Holds one copy of the prompt's cache per response. Cannot
    run under gradient checkpointing.
    """

    name = "fork"

    def __init__(self, config: Any) -> None:
        _new_cache(config)  # refuses what it cannot fork

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> Tensor:
        """Compute the NLL in two forwards per group.

        Groups of one pair, and groups without a shared prefix, go together in one forward.

        Raises:
            NotShareable: under gradient checkpointing or FSDP, or if the model does not use its cache.
        """
        if model.training and recomputes(model):
            raise NotShareable(NO_CHECKPOINTING)
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise NotShareable(
                "prefix_backend=fork: FSDP frees weights between the two forwards that one backward pass needs. Use "
                "DDP, or layout=expanded."
            )
        found: list[tuple[Tensor, Tensor]] = []
        alone: list[list[Run]] = []
        for group in group_runs(find_runs(rows)):
            if group[0].segment == 0 and len(group) > 2:
                found.append(self._forked(model, rows, group, compute))
            elif group[0].segment == 0:
                alone.append(group)
            else:
                alone += [[run] for run in group]
        if alone:
            inputs, labels, index = _batch(rows, alone)
            kwargs = {
                "input_ids": inputs,
                "attention_mask": (index >= 0).long(),
                "position_ids": torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs),
                "use_cache": False,
            }
            found.append((index, compute(kwargs, labels)))
        places = torch.cat([index[index >= 0] for index, _ in found])
        values = torch.cat([nll[index >= 0] for index, nll in found])
        return values.new_zeros(rows.labels.numel()).index_put((places,), values).view(rows.labels.shape)

    def _forked(self, model: Any, rows: Rows, group: list[Run], compute: Compute) -> tuple[Tensor, Tensor]:
        prompt, segments = group[0], group[1:]
        for rope in length_ropes(model.config):
            if prompt.length <= rope.threshold < prompt.length + max(run.length for run in segments):
                raise NotShareable(
                    f"prefix_backend=fork: the prompt and its responses lie on two sides of {rope.threshold} tokens, "
                    f"where {rope.kind} changes the rotary angles. Use prefix_backend=sdpa or layout=expanded."
                )
        cache = _new_cache(model.config)
        where = slice(prompt.start, prompt.start + prompt.length)
        model(
            input_ids=rows.input_ids[prompt.row, where][None],
            use_cache=True,
            logits_to_keep=1,
            **self._memory(model, cache, rows.position_ids[prompt.row, where][None]),
        )
        if not _filled(cache):
            raise NotShareable("prefix_backend=fork: the model did not fill its cache. Use layout=expanded.")
        copies = torch.zeros(len(segments), dtype=torch.int64, device=rows.input_ids.device)
        cache.reorder_cache(copies)  # type: ignore[arg-type]
        inputs, labels, index = _batch(rows, [[segment] for segment in segments])
        positions = prompt.length + torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        # Responses are padded on the right. A causal model never reads there, so no mask is needed.
        kwargs = {"input_ids": inputs, "use_cache": True, **self._memory(model, cache, positions)}
        return index, compute(kwargs, labels)

    def _memory(self, model: Any, cache: DynamicCache, positions: Tensor) -> dict[str, Any]:
        """Return the cache under the argument name that the model's forward uses."""
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if "cache_params" in inspect.signature(base.forward).parameters:
            return {"cache_params": cache}  # Mamba, which takes no positions
        return {"past_key_values": cache, "position_ids": positions}


def _new_cache(config: Any) -> DynamicCache:
    text = config.get_text_config()
    cache = DynamicCache(config=text)
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionLayer):
            if type(layer) is not LinearAttentionLayer:
                raise NotShareable(
                    f"prefix_backend=fork: {text.model_type} keeps its state in a {type(layer).__name__}, which it "
                    "cannot fork. Use layout=expanded."
                )
            cache.layers[number] = KeptStates(number_of_states=layer.number_of_states)
    return cache


def _filled(cache: DynamicCache) -> bool:
    """Return whether a forward filled the cache."""
    return all(
        layer.has_previous_state[0] if isinstance(layer, LinearAttentionLayer) else layer.is_initialized  # type: ignore[union-attr]
        for layer in cache.layers
    )


def _batch(rows: Rows, sequences: list[list[Run]]) -> tuple[Tensor, Tensor, Tensor]:
    """Build a right-padded batch from sequences of consecutive runs.

    Returns:
        [B, L] input ids and labels, and the index of each token in the flattened rows; -1 on padding.
    """
    lengths = [sum(run.length for run in runs) for runs in sequences]
    # At least two tokens: with one token, a model takes its path for a single cached step.
    index = torch.full((len(sequences), max(2, *lengths)), -1)
    for number, (runs, length) in enumerate(zip(sequences, lengths, strict=True)):
        first = runs[0].row * rows.input_ids.shape[1] + runs[0].start
        index[number, :length] = torch.arange(first, first + length)
    index = index.to(rows.input_ids.device)
    taken = index.clamp_min(0)
    labels = rows.labels.flatten()[taken].masked_fill(index < 0, IGNORE)
    return rows.input_ids.flatten()[taken], labels, index
