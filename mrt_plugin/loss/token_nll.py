"""Compute the negative log-likelihood (NLL), or another loss, of each trained token, and the loss of a step."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from mrt_plugin.layout.group_row import IGNORE

logger = logging.getLogger(__name__)

TokenLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Returns the loss of each token, [n] float32, from logits [n, V] float32 and targets [n]."""


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the NLL of each token, [n], in nats."""
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def step_loss(nll: torch.Tensor, loss_weights: torch.Tensor, units: torch.Tensor, processes: int = 1) -> torch.Tensor:
    """Return this micro-batch's part of the step's loss: sum(c · nll) divided by the step's units (`docs/loss.md`).

    nll and the coefficients c are [R, T]; `units` is the sum over all micro-batches of the step on all processes.
    Gradients are averaged over `processes`. A step of filler rows only has no units and the loss 0.

    Example:

    >>> step_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor(4.0)).item()
    0.5
    """
    return (loss_weights * nll).sum() * processes / units.clamp_min(torch.finfo(units.dtype).tiny)


def chunk_tokens(vocabulary: int) -> int:
    """Return how many tokens have logits at the same time: 256, or more for up to 16 MiB of logits in fp32."""
    return max(256, 2**22 // vocabulary)


class TokenNLL:
    """Run a causal language model once and return the NLL of its labels.

    The output head runs on trained positions only, `chunk` of them at a time, and its logits are recomputed in the
    backward pass (those of the last chunk are kept: the backward pass begins with them). So the logits of a prompt
    never exist. The model gets no labels, so a forward that a kernel library replaced computes no loss of its own.

    A forward may change the logits by more than the known transformations (`logit_transform`). The NLL of all trained
    tokens is compared to detect this, in every call within `judging()`, otherwise in the first. Such a model runs its
    own head on the trained positions.
    """

    def __init__(self, model: nn.Module, chunk: int | None = None) -> None:
        self.head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        if self.head is None:
            raise ValueError(f"{type(model).__name__} has no output embeddings: a causal language model is needed.")
        config: Any = model.config
        self.transform = logit_transform(config)
        self.chunk = chunk or chunk_tokens(config.get_text_config().vocab_size)
        self.correct_tokens = torch.zeros((), dtype=torch.int64)
        """Trained tokens whose most likely prediction was correct, since the last `take_correct_tokens`."""
        self._own_head: bool | None = None
        """Whether the model's own head is needed; None while no token has been compared."""
        self._judging = False

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Compare the known transformation with the model's own logits in every call, for the proof."""
        self._judging = True
        try:
            yield
        finally:
            self._judging = False

    def bound(
        self, model: nn.Module, loss: TokenLoss = token_nll
    ) -> Callable[[Mapping[str, Any], torch.Tensor], torch.Tensor]:
        """Return a `compute(forward_kwargs, shift_labels)` that runs `model`, which may be wrapped."""
        return lambda forward_kwargs, shift_labels: self(model, forward_kwargs, shift_labels, loss)

    def __call__(
        self,
        model: nn.Module,
        forward_kwargs: Mapping[str, Any],
        shift_labels: torch.Tensor,
        loss: TokenLoss = token_nll,
    ) -> torch.Tensor:
        """Return the NLL, or another `loss`, [B, T] float32 of `shift_labels` [B, T]; 0 where the label is -100.

        `model` is that given at construction, or its distributed wrapper. `forward_kwargs` are its arguments, without
        labels.
        """
        where = shift_labels != IGNORE
        flat_targets = shift_labels[where]
        compare = len(flat_targets) > 0 and (self._own_head is None or (self._judging and not self._own_head))
        own_head = len(flat_targets) > 0 and bool(compare or self._own_head)
        heard = _Heard(loss)
        with self._listen(heard, where, flat_targets, compare, own_head):
            logits = model(**forward_kwargs).logits
        # FSDP2 gathers weights for the backward pass of what a forward returned: let all of it have a gradient, of 0.
        tie = logits.flatten()[:0].float().sum() if isinstance(model, FSDPModule) else None
        if compare:
            with torch.no_grad():
                found = self._from_logits(logits[0], flat_targets)
            self._own_head = not torch.allclose(found, heard.expected, rtol=1e-4, atol=1e-4)
            if self._own_head:
                logger.info("The model changes its logits in an unknown way: its own head runs on the trained tokens.")
        if own_head and self._own_head:
            flat = self._from_logits(logits[0], flat_targets, loss=loss)
            self._count(logits[0].argmax(-1), flat_targets)
        else:
            del logits  # frees what only the comparison needed
            flat = self._chunked(heard, flat_targets) if heard.values is None else heard.values
        if tie is not None:
            flat = flat + tie
        nll = torch.zeros(where.shape, dtype=torch.float32, device=where.device)
        return nll.masked_scatter(where, flat)

    def take_correct_tokens(self) -> torch.Tensor:
        """Return the number of correctly predicted tokens, and reset it."""
        taken = self.correct_tokens
        self.correct_tokens = torch.zeros_like(taken)
        return taken

    @contextmanager
    def _listen(
        self, heard: "_Heard", where: torch.Tensor, flat_targets: torch.Tensor, compare: bool, own_head: bool
    ) -> Iterator[None]:
        """Record the head's input at the trained positions.

        With `own_head`, the model's head runs there, otherwise on one position. With `compare`, its output is read
        before the model's forward changes it. A head that FSDP2 shards has its weights during its own call only, so
        the NLL is computed there.
        """

        def before_head(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            (hidden,) = args
            device = hidden.device.type
            if torch.is_autocast_enabled(device):
                heard.autocast = torch.autocast(device, torch.get_autocast_dtype(device))
            heard.hidden = hidden[where]
            heard.first = hidden[:1, :1].detach()
            if isinstance(module, FSDPModule):
                heard.values = self._chunked(heard, flat_targets)
            return (heard.hidden.unsqueeze(0),) if own_head else (hidden[:1, :1],)

        @torch.no_grad()
        def after_head(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            if compare:
                heard.expected = self._from_logits(output[0], flat_targets, change=self.transform)

        hooks = self.head.register_forward_pre_hook(before_head), self.head.register_forward_hook(after_head)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if heard.hidden is None:
            raise RuntimeError(
                "The model's forward did not use its output embeddings. Remove the kernel or patch that replaces its "
                "head (a fused loss, say), or report the model's name."
            )

    def _chunked(self, heard: "_Heard", targets: torch.Tensor) -> torch.Tensor:
        assert heard.hidden is not None
        if len(targets) == 0:  # keeps the graph, so that every rank has gradients to reduce
            first: torch.Tensor = self._run_head(heard.first)
            return heard.hidden.float().sum(-1) + 0.0 * first.float().sum()
        needs_gradient = heard.hidden.requires_grad or any(
            parameter.requires_grad for parameter in self.head.parameters()
        )
        pieces = []
        hiddens, chunks = torch.split(heard.hidden, self.chunk), torch.split(targets, self.chunk)
        for number, (hidden, target) in enumerate(zip(hiddens, chunks, strict=True), start=1):
            if needs_gradient and number < len(chunks):
                values, predicted = checkpoint(
                    self._piece, hidden, target, heard, use_reentrant=False, preserve_rng_state=False
                )
            else:
                values, predicted = self._piece(hidden, target, heard)
            pieces.append(values)
            self._count(predicted, target)
        return torch.cat(pieces)

    def _piece(self, hidden: torch.Tensor, target: torch.Tensor, heard: "_Heard") -> tuple[torch.Tensor, torch.Tensor]:
        with heard.autocast or nullcontext():
            logits = self.transform(self._run_head(hidden)).float()
        return heard.loss(logits, target), logits.detach().argmax(-1)

    def _run_head(self, hidden: torch.Tensor) -> torch.Tensor:
        # Another call of a head that FSDP2 shards with the final norm would leave their shared state half done.
        logits: torch.Tensor = (self.head.forward if isinstance(self.head, FSDPModule) else self.head)(hidden)
        return logits

    def _from_logits(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        *,
        loss: TokenLoss = token_nll,
        change: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    ) -> torch.Tensor:
        """Return the loss [n] of targets [n] from logits [n, V], one chunk at a time."""
        pieces = zip(torch.split(logits, self.chunk), torch.split(targets, self.chunk), strict=True)
        return torch.cat([loss(change(part).float(), target) for part, target in pieces])

    def _count(self, predicted: torch.Tensor, targets: torch.Tensor) -> None:
        self.correct_tokens = self.correct_tokens.to(targets.device) + (predicted == targets).sum()


@dataclass
class _Heard:
    """The recorded input of the head during one forward, and the loss asked for."""

    loss: TokenLoss = token_nll
    hidden: torch.Tensor | None = None
    first: torch.Tensor = torch.empty(0)
    values: torch.Tensor | None = None
    """The loss of the targets, where it is computed during the head's own call."""
    expected: torch.Tensor = torch.empty(0)
    """The NLL according to the known transformation, where it is compared."""
    autocast: AbstractContextManager[Any] | None = None


CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
SCALES = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISORS = ("logits_scaling",)
"""Names of configuration fields with which model families of transformers change the head's output."""


def logit_transform(config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the transformation that the model's forward applies to the head's output: divide, scale, soft-cap."""
    values = config.get_text_config().to_dict()
    caps, scales, divisors = (
        [values[name] for name in names if values.get(name) is not None] for names in (CAPS, SCALES, DIVISORS)
    )

    def transform(logits: torch.Tensor) -> torch.Tensor:
        for divisor in divisors:
            logits = logits / divisor
        for scale in scales:
            logits = logits * scale
        for cap in caps:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return transform
