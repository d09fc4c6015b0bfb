"""Forwards of a model whose weights FSDP2 shards: all processes gather the weights of its units at the same calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule


def most_forwards(model: nn.Module, forwards: int) -> int:
    """Return the largest number of forwards of any process."""
    most = torch.tensor(forwards, device=next(model.parameters()).device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


@dataclass
class _Call:
    """A call of a unit, with the calls of units inside it."""

    unit: nn.Module
    inside: "list[_Call]" = field(default_factory=list)
    ended: bool = False


class UnitCalls:
    """Records the calls of a model's FSDP2 units, to end a forward that failed in this process alone.

    A process that left a forward would leave the others waiting for its shards. So it calls the rest of the units
    with a forward that computes nothing: FSDP2 then gathers and frees their weights as in the other processes.
    """

    def __init__(self) -> None:
        self.forwards: list[_Call] = []
        self._open: list[_Call] = []

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Record the calls of a block, after those before."""
        hooks = []
        for module in model.modules():
            if isinstance(module, FSDPModule):
                hooks += [module.register_forward_pre_hook(self._begin), module.register_forward_hook(self._end)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def end(self, like: _Call, forwards: int) -> None:
        """End the forward that failed, if one did, and run `forwards` more, each as `like` was."""
        failed, self._open = self._open[:1], []
        with torch.no_grad():
            for begun in [*failed, *[None] * forwards]:
                _call(like, begun)

    def _begin(self, unit: nn.Module, args: Any) -> None:
        call = _Call(unit)
        (self._open[-1].inside if self._open else self.forwards).append(call)
        self._open.append(call)

    def _end(self, unit: nn.Module, args: Any, output: Any) -> None:
        self._open.pop().ended = True


def _call(like: _Call, begun: _Call | None) -> None:
    """Call a unit and those inside it without computing anything, but for those that `begun` has ended already."""
    unit, done = like.unit, begun.inside if begun is not None else []
    own = vars(unit).get("forward")

    def forward(nothing: torch.Tensor) -> torch.Tensor:
        for number, inside in enumerate(like.inside):
            before = done[number] if number < len(done) else None
            if before is None or not before.ended:
                _call(inside, before)
        return nothing

    vars(unit)["forward"] = forward
    try:
        unit(torch.zeros(1))
    finally:
        if own is None:
            del vars(unit)["forward"]
        else:
            vars(unit)["forward"] = own
