"""The `fork` backend: run what sequences share once, copy its cache, and continue on the copies."""

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache

from mrt_plugin.attention.backend import Compute, OwnAttention
from mrt_plugin.attention.branches import Branch, Placed, batch_inner, batch_leaves, forest
from mrt_plugin.attention.family import NotShareable
from mrt_plugin.attention.fork_cache import copy_cache, copy_layer, is_filled, new_cache
from mrt_plugin.attention.fork_checkpoint import recomputed, recomputes, refuse_other_checkpointing
from mrt_plugin.attention.length_rope import length_ropes
from mrt_plugin.attention.sharded import most_forwards
from mrt_plugin.layout.group_row import IGNORE
from mrt_plugin.layout.rows import Rows

IDLE = Placed(Branch(tokens=[0], repeated=1, position=0, children=[]), 0)
"""A forward without any NLL, for a process that has fewer of them than another."""


class ForkBackend(OwnAttention):
    """Run what branches of trees share, and copy its cache for the runs that continue it.

    Gradients flow through the cache. Exact for every family that keeps all its memory of a prompt in transformers'
    cache, including families with a state along the row. Holds one copy of a run's cache per continuation, under
    gradient checkpointing only that of the layer at work.
    """

    name = "fork"
    together = False
    """Whether all processes run equally many forwards: where weights are sharded, they gather them together."""

    def __init__(self, config: Any) -> None:
        new_cache(config)  # refuses what it cannot fork

    def prepare_model(self, model: Any) -> None:
        refuse_other_checkpointing(model)
        super().prepare_model(model)

    def forwards(self, rows: Rows) -> int:
        return _count(forest(rows))

    def token_nll(self, model: Any, rows: Rows, compute: Compute) -> Tensor:
        """Compute the NLL. Branches of trees go through the model in the batches of `branches`.

        Raises:
            NotShareable: under another library's checkpointing, or if the model does not use its cache.
        """
        refuse_other_checkpointing(model)
        roots = forest(rows)
        _refuse_split_angles(model.config, roots)
        idle = most_forwards(model, _count(roots)) - _count(roots) if self.together else 0
        leaves, inner = _divide([Placed(root, 0) for root in roots])
        empty = new_cache(model.config)
        found = [self._alone(model, rows, batch, empty, compute) for batch in batch_leaves(leaves)]
        found += [self._alone(model, rows, [IDLE], empty, compute) for _ in range(idle)]
        waiting = [(batch, empty) for batch in batch_inner(inner)]
        while waiting:
            batch, cache = waiting.pop()
            nll, own = self._continue(model, rows, batch, cache, compute, keep=True)
            found.append(nll)
            if not is_filled(own, model.config):
                raise NotShareable("prefix_backend=fork: the model did not fill its cache. Use layout=expanded.")
            leaves, inner = _divide(_children(batch))
            waiting += [(more, own) for more in batch_inner(inner)]
            for last in batch_leaves(leaves):
                found.append(self._continue(model, rows, last, own, compute, keep=False)[0])
        places = torch.cat([index[index >= 0] for index, _ in found])
        values = torch.cat([nll[index >= 0] for index, nll in found])
        filled = values.new_zeros(rows.input_ids.numel()).index_put((places,), values)
        return filled.view(rows.input_ids.shape)

    def _alone(
        self, model: Any, rows: Rows, batch: list[Placed], empty: DynamicCache, compute: Compute
    ) -> tuple[Tensor, Tensor]:
        """Return the indices in the flattened rows of the tokens of trees of one sequence, and their NLL."""
        inputs, labels, index = _batch(rows, batch)
        positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        lengths = torch.tensor([len(placed.branch.tokens) for placed in batch], device=inputs.device)
        kwargs = {
            "input_ids": inputs,
            "attention_mask": (positions < lengths[:, None]).long(),
            "position_ids": positions,
            "use_cache": False,
        }
        if not (model.training and recomputes(model)):
            return index, compute(kwargs, labels)
        with recomputed(model, empty, None, keep=False):  # one kind of checkpointing for all forwards of a step
            return index, compute(kwargs, labels)

    def _continue(
        self, model: Any, rows: Rows, batch: list[Placed], cache: DynamicCache, compute: Compute, *, keep: bool
    ) -> tuple[tuple[Tensor, Tensor], DynamicCache]:
        """Return the same of branches that continue a cache, and with `keep` their own cache, a row per branch."""
        inputs, labels, index = _batch(rows, batch)
        first = batch[0].branch.position  # of all of them
        positions = first + torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        above = torch.tensor([placed.row for placed in batch], device=inputs.device) if first else None
        # Leaves are padded on the right. A causal model never reads there, so no mask is needed.
        kwargs = {"input_ids": inputs, "use_cache": True}
        if model.training and recomputes(model):
            with recomputed(model, cache, above, keep=keep) as own:
                nll = compute({**kwargs, **_memory(model, own, positions)}, labels)
        else:
            own = copy_cache(cache)
            own.layers = [copy_layer(layer, above) for layer in cache.layers]
            nll = compute({**kwargs, **_memory(model, own, positions)}, labels)
        return (index, nll), own


def _memory(model: Any, cache: DynamicCache, positions: Tensor) -> dict[str, Any]:
    """Return the cache under the argument name that the model's forward uses."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if "cache_params" in inspect.signature(base.forward).parameters:
        return {"cache_params": cache}  # Mamba, which takes no positions
    return {"past_key_values": cache, "position_ids": positions}


def _divide(branches: list[Placed]) -> tuple[list[Placed], list[Placed]]:
    """Return the branches without children, and those with children."""
    leaves = [placed for placed in branches if not placed.branch.children]
    return leaves, [placed for placed in branches if placed.branch.children]


def _children(batch: list[Placed]) -> list[Placed]:
    return [Placed(child, row) for row, placed in enumerate(batch) for child in placed.branch.children]


def _count(roots: list[Branch]) -> int:
    """Return the number of forwards that trees take."""
    forwards, waiting = 0, [[Placed(root, 0) for root in roots]]
    while waiting:
        leaves, inner = _divide(waiting.pop())
        batches = batch_inner(inner)
        forwards += len(batch_leaves(leaves)) + len(batches)
        waiting += map(_children, batches)
    return forwards


def _refuse_split_angles(config: Any, roots: list[Branch]) -> None:
    """Refuse trees whose rotary angles change between the first forward and the last (`NotShareable`)."""
    trees = [root for root in roots if root.children]
    for rope in length_ropes(config) if trees else []:
        if min(len(root.tokens) for root in trees) <= rope.threshold < max(root.deepest for root in trees):
            raise NotShareable(
                f"prefix_backend=fork: the prompt and its responses lie on two sides of {rope.threshold} tokens, "
                f"where {rope.kind} changes the rotary angles. Use prefix_backend=sdpa or layout=expanded."
            )


def _batch(rows: Rows, batch: list[Placed]) -> tuple[Tensor, Tensor, Tensor]:
    """Build a right-padded batch from branches.

    Returns:
        [B, L] input ids and shifted labels, and the index of each token in the flattened rows; -1 on padding and on
        repeated tokens.
    """
    branches = [placed.branch for placed in batch]
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
