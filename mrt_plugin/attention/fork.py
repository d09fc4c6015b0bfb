"""The `fork` backend: run what sequences share once, copy its cache, and continue on the copies."""

import copy
import inspect
from dataclasses import dataclass
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
from mrt_plugin.attention.plan import find_runs
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

    transformers' checkpointing does, and torch's around the layers (FSDP's `activation_checkpointing`, Axolotl's
    `activation_offloading`).
    """
    return any(
        isinstance(module, CheckpointWrapper) or getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )


SHORTEST = 2
"""The fewest tokens of an inner run that is forked. Shorter ones are computed again in each child: with a single
token, a model takes its path for one cached step."""


class ForkBackend(OwnAttention):
    """Run one tree at a time, and copy the cache of each inner run for the runs that continue it.

    Gradients flow through the cache. Exact for every family that keeps all its memory of a prompt in transformers'
    cache, including families with a state along the row. Holds one copy of a run's cache per continuation. Cannot
    run under gradient checkpointing.
    """

    name = "fork"

    def __init__(self, config: Any) -> None:
        _new_cache(config)  # refuses what it cannot fork

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> Tensor:
        """Compute the NLL in one forward per inner run and one for all its leaves.

        Trees of one sequence go together in one forward.

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
        roots = _forest(rows)
        alone = [root for root in roots if not root.children]
        if alone:
            inputs, labels, index = _batch(rows, alone)
            positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
            lengths = torch.tensor([len(root.tokens) for root in alone], device=inputs.device)
            kwargs = {
                "input_ids": inputs,
                "attention_mask": (positions < lengths[:, None]).long(),
                "position_ids": positions,
                "use_cache": False,
            }
            found.append((index, compute(kwargs, labels)))
        for root in roots:
            if root.children:
                found += self._fork(model, rows, root, compute)
        places = torch.cat([index[index >= 0] for index, _ in found])
        values = torch.cat([nll[index >= 0] for index, nll in found])
        filled = values.new_zeros(rows.input_ids.numel()).index_put((places,), values)
        return filled.view(rows.input_ids.shape)

    def _fork(self, model: Any, rows: Rows, root: "_Branch", compute: Compute) -> list[tuple[Tensor, Tensor]]:
        """Return the NLL of a tree's tokens, and their indices in the flattened rows, one pair per forward."""
        deepest = root.deepest
        for rope in length_ropes(model.config):
            if len(root.tokens) <= rope.threshold < deepest:
                raise NotShareable(
                    f"prefix_backend=fork: the prompt and its responses lie on two sides of {rope.threshold} tokens, "
                    f"where {rope.kind} changes the rotary angles. Use prefix_backend=sdpa or layout=expanded."
                )
        found = []
        waiting: list[tuple[_Branch, DynamicCache | None]] = [(root, None)]
        while waiting:
            branch, cache = waiting.pop()
            own = _new_cache(model.config) if cache is None else _copy(cache, 1)
            found.append(self._continue(model, rows, [branch], own, compute))
            if not _filled(own):
                raise NotShareable("prefix_backend=fork: the model did not fill its cache. Use layout=expanded.")
            waiting += [(child, own) for child in branch.children if child.children]
            leaves = [child for child in branch.children if not child.children]
            if leaves:
                found.append(self._continue(model, rows, leaves, _copy(own, len(leaves)), compute))
        return found

    def _continue(
        self, model: Any, rows: Rows, branches: "list[_Branch]", cache: DynamicCache, compute: Compute
    ) -> tuple[Tensor, Tensor]:
        inputs, labels, index = _batch(rows, branches)
        positions = branches[0].position + torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        # Leaves are padded on the right. A causal model never reads there, so no mask is needed.
        kwargs = {"input_ids": inputs, "use_cache": True, **self._memory(model, cache, positions)}
        return index, compute(kwargs, labels)

    def _memory(self, model: Any, cache: DynamicCache, positions: Tensor) -> dict[str, Any]:
        """Return the cache under the argument name that the model's forward uses."""
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        if "cache_params" in inspect.signature(base.forward).parameters:
            return {"cache_params": cache}  # Mamba, which takes no positions
        return {"past_key_values": cache, "position_ids": positions}


@dataclass
class _Branch:
    """A run of a tree with what continues it."""

    tokens: list[int]
    """Indices in the flattened rows."""
    repeated: int
    """Number of first tokens that another branch computes as well. Their NLL is taken from that branch."""
    position: int
    """Position of the first token."""
    children: "list[_Branch]"

    @property
    def deepest(self) -> int:
        """Tokens of the longest sequence of the tree up to here."""
        longest, waiting = 0, [self]
        while waiting:
            branch = waiting.pop()
            longest = max(longest, branch.position + len(branch.tokens))
            waiting += branch.children
        return longest


def _forest(rows: Rows) -> list[_Branch]:
    """Return the trees of all rows. Inner runs of fewer than `SHORTEST` tokens are copied into their children."""
    runs, width = find_runs(rows), rows.input_ids.shape[1]
    inner = {run.parent for run in runs}
    roots: list[_Branch] = []
    above: dict[int, _Branch | None] = {-1: None}  # the branch that a run's children continue
    copied: dict[int, list[int]] = {-1: []}  # the tokens that they repeat
    taken: set[int] = set()  # those of them that a branch has already
    for number, run in enumerate(runs):
        parent, first = above[run.parent], copied[run.parent]
        tokens = [*first, *range(run.row * width + run.start, run.row * width + run.stop)]
        if number in inner and len(tokens) < SHORTEST:
            above[number], copied[number] = parent, tokens
            continue
        repeated = sum(index in taken for index in first)
        taken.update(first)
        branch = _Branch(tokens, repeated, run.position - len(first), [])
        (roots if parent is None else parent.children).append(branch)
        above[number], copied[number] = branch, []
    return roots


def _copy(cache: DynamicCache, count: int) -> DynamicCache:
    """Return `count` copies of a cache, as one batch. The cache is not changed."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in copied.layers:
        for name, value in vars(layer).items():
            if isinstance(value, list | dict):
                setattr(layer, name, copy.copy(value))
    if count > 1:  # a forward never changes the tensors of a cache, so one continuation needs no copies of them
        copied.reorder_cache(torch.zeros(count, dtype=torch.int64))  # type: ignore[arg-type]
    return copied


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


def _batch(rows: Rows, branches: list[_Branch]) -> tuple[Tensor, Tensor, Tensor]:
    """Build a right-padded batch from branches.

    Returns:
        [B, L] input ids and shifted labels, and the index of each token in the flattened rows; -1 on padding and on
        repeated tokens.
    """
    # At least two tokens: with one token, a model takes its path for a single cached step.
    longest = max(2, *(len(branch.tokens) for branch in branches))
    tokens = torch.zeros(len(branches), longest, dtype=torch.int64)
    index = torch.full_like(tokens, -1)
    for number, branch in enumerate(branches):
        tokens[number, : len(branch.tokens)] = torch.tensor(branch.tokens)
        index[number, branch.repeated : len(branch.tokens)] = torch.tensor(branch.tokens[branch.repeated :])
    tokens, index = tokens.to(rows.input_ids.device), index.to(rows.input_ids.device)
    labels = rows.shift_labels.flatten()[tokens].masked_fill(index < 0, IGNORE)
    return rows.input_ids.flatten()[tokens], labels, index
