"""The proof before training: a backend gives the same numbers as a forward of one pair at a time.

Part 1 compares loss and gradients on a small random fp32 model of the run's configuration. Part 2 compares per-token
NLL on the real model and a real row. Its tolerance is how much the plain forward changes with the shape of its batch.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from mrt_plugin.attention.backend import Backend, Compute
from mrt_plugin.attention.family import (
    NotShareable,
    exact_attention,
    read_family,
    set_text_attention,
    text_attention,
)
from mrt_plugin.attention.fork import ForkBackend
from mrt_plugin.attention.plain import (
    PlainForward,
    compared,
    inference,
    measure_plain,
    on_device,
    packed_nll,
    rms,
    settle_plain,
)
from mrt_plugin.attention.sharded import UnitCalls
from mrt_plugin.attention.small_model import BEYOND, VOCABULARY, WINDOW, random_model, small_config, thresholds
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE, GroupRow, build_group_row, expand
from mrt_plugin.layout.rows import build_rows

logger = logging.getLogger(__name__)

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Proof:
    """The result of a proof: relative differences in part 1, nats per trained token (root mean square) in part 2."""

    backend: str
    loss_difference: float
    gradient_difference: float
    nll_difference: float | None
    """None where only part 1 was run."""
    nll_tolerance: float | None
    tokens: int
    """Number of trained tokens compared in part 2."""
    seconds: float


def prove(
    model: Any,
    backend: Backend,
    group: GroupRow | None = None,
    *,
    beside: Sequence[GroupRow] = (),
    reach: int | None = None,
    compute: Compute | None = None,
    pad_token_id: int = 0,
    gradient_checkpointing: bool = False,
) -> Proof:
    """Prove that a backend is exact for a model, and leave the model prepared for it.

    Args:
        model: the real model. It may be a PeftModel and quantized.
        backend: the backend, built from the model's configuration.
        group: a real group, preferably the one with the longest pair of the run. Without a group, part 2 is skipped.
        beside: the groups that follow it in a packed row of the run.
        reach: the longest row of the run, in tokens. Thresholds beyond it are not tested. By default all are.
        compute: how per-token NLL is computed from the model; by default from all logits.
        pad_token_id: any token id; padding does not affect the result.
        gradient_checkpointing: whether the run recomputes activations. Part 1 then does so with the backend.

    Raises:
        NotShareable: if the numbers differ, or for any error. The model's previous attention is then restored.
    """
    began = time.perf_counter()
    compute = compute or all_logits(model)
    row = [] if group is None else [group, *beside]
    difference = None
    backend.restore_model(model)
    own = text_attention(model)
    try:
        with (
            refusal_of(f"prefix_backend={backend.name} could not be proved: {model.config.model_type}"),
            torch.random.fork_rng([model.device] if model.device.type == "cuda" else []),
        ):
            plain = settle_plain(model, row, compute, pad_token_id) if row else None
            if plain is not None and not plain.steady:
                raise NotShareable(
                    f"{model.config.model_type} depends on what stands beside a pair: {plain.finding}. It is exact "
                    "one pair per forward only: use layout=expanded, which trains it so."
                )
            small = _SmallProof(model, backend, reach, gradient_checkpointing).run()
            if plain is not None:
                difference = _prove_real(model, backend, row, plain, compute, pad_token_id)
    except NotShareable:
        backend.restore_model(model)
        set_text_attention(model, own)  # `settle_plain` may have replaced it
        raise
    backend.prepare_model(model)
    tolerance, tokens = (None, 0) if plain is None else (plain.tolerance, len(plain.nll))
    proof = Proof(backend.name, *small, difference, tolerance, tokens, time.perf_counter() - began)
    logger.info("Shared prefix proved: %s", proof)
    return proof


def prove_wrapped(
    model: Any, backend: Backend, row: list[GroupRow], *, compute: Compute, pad_token_id: int, spacing: float = 0.0
) -> str | None:
    """Do part 2 on a model whose weights are sharded over processes, and return why it fails, or None.

    Every process gets the same row, and so runs the same number of forwards, whatever it finds. Under FSDP2, so does
    a process whose shared forward raises an error.

    Args:
        model: the model inside the wrapper, prepared for the backend.
        backend: passed part 1.
        row: groups in one row, as the run packs them.
        compute: runs the wrapper.
        pad_token_id: any token id.
        spacing: distance from 1 to the next larger number of a type that the wrapper computes in.

    Raises:
        NotShareable: for an error of the shared forward under ZeRO-3. The wrapper is then in the middle of a forward,
            so the run cannot go on.
    """
    every = list(chain.from_iterable(map(expand, row)))
    pairs = [every[index] for index in compared(every)]
    backend.restore_model(model)
    before, calls = UnitCalls(), UnitCalls()
    with before.recording(model):
        plain = measure_plain(model, pairs, compute, pad_token_id)
    plain = replace(plain, spacing=max(plain.spacing, spacing))
    what = f"prefix_backend={backend.name} could not be proved: {model.config.model_type}"
    try:
        with calls.recording(model), refusal_of(what):
            difference = _real_difference(model, backend, row, plain, compute, pad_token_id)
    except NotShareable as failure:
        if not before.forwards:  # not FSDP2
            raise
        missing = backend.forwards(build_rows([row], pad_token_id)) - len(calls.forwards)
        with inference(model):
            calls.end(before.forwards[-1], missing)
        return str(failure)
    if not plain.steady:
        return f"{model.config.model_type}: {plain.finding}."
    refusal = _difference_found(model, backend, row, plain, difference)
    if refusal is not None:
        return refusal
    logger.info(
        "Shared prefix proved through the wrapped model: %s, NLL differs by %.1e nats (allowed: %.1e).",
        backend.name,
        difference,
        plain.tolerance,
    )
    return None


@contextmanager
def refusal_of(what: str) -> Iterator[None]:
    """Convert any exception to `NotShareable`, with the exception as its cause. The message begins with `what`."""
    try:
        yield
    except NotShareable:
        raise
    except Exception as error:
        raise NotShareable(f"{what} failed with {type(error).__name__}: {error}. Use layout=expanded.") from error


def all_logits(model: Any) -> Compute:
    """Return a `compute` that keeps all logits in memory."""

    def compute(forward_kwargs: dict[str, Any], shift_labels: torch.Tensor) -> torch.Tensor:
        logits = model(**forward_kwargs).logits.float().transpose(1, 2)
        return torch.nn.functional.cross_entropy(logits, shift_labels, ignore_index=IGNORE, reduction="none")

    return compute


class _SmallProof:
    """Comparisons on small random models of the configuration, between one pair at a time and packed rows."""

    def __init__(self, model: Any, backend: Backend, reach: int | None, gradient_checkpointing: bool) -> None:
        self.model, self.backend, self.reach = model, backend, reach
        self.gradient_checkpointing = gradient_checkpointing
        self.groups = _random_groups()
        own = text_attention(model)
        # The attention of the model in the plain layout, or `eager` if that may not exist for fp32 on this device.
        self.attention = "sdpa" if own == "sdpa" and exact_attention(model) == "sdpa" else "eager"

    def run(self) -> tuple[float, float]:
        """Return the relative differences of the loss and of the gradient, or refuse the backend."""
        name, model_type = self.backend.name, self.model.config.model_type
        with refusal_of(f"prefix_backend={name} could not be proved: a small {model_type} of this configuration"):
            config = small_config(self.model.config, self.reach)
            expected, expected_gradient = self._loss_and_gradient(config, self._one_by_one)
            found, found_gradient = self._loss_and_gradient(config, self._packed)
        loss = float(abs(found / expected - 1))
        gradient = float((found_gradient - expected_gradient).norm() / expected_gradient.norm())
        # The comparison is written so that NaN is refused as well.
        if not (loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE):
            raise NotShareable(
                f"prefix_backend={name} does not compute what {model_type} computes: on a small random model of this "
                f"configuration, the loss differs by {loss:.1e} (allowed: {LOSS_TOLERANCE:g}) and the gradient by "
                f"{gradient:.1e} of its norm (allowed: {GRADIENT_TOLERANCE:g}). {self._cause()} Use layout=expanded."
            )
        return loss, gradient

    def _loss_and_gradient(
        self, config: Any, loss: Callable[[Any, list[GroupRow]], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model = random_model(config, self.model.device, self.attention)
        with torch.enable_grad():
            value = loss(model, self.groups)
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        return value.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    def _one_by_one(self, model: Any, groups: list[GroupRow]) -> torch.Tensor:
        losses = []
        for pair in chain.from_iterable(map(expand, groups)):
            rows = on_device(build_rows([[pair]], 0), model)
            nll = all_logits(model)({"input_ids": rows.input_ids, "use_cache": False}, rows.shift_labels)
            losses.append((nll * rows.loss_weights).sum())
        return torch.stack(losses).sum()

    def _packed(self, model: Any, groups: list[GroupRow]) -> torch.Tensor:
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        backend: Backend = type(self.backend)(model.config)  # type: ignore[call-arg]
        backend.prepare_model(model)
        rows = on_device(build_rows([groups], 0), model)
        return (backend.token_nll(model, rows, all_logits(model)) * rows.loss_weights).sum()

    def _cause(self) -> str:
        """Return the feature of the family that causes the difference, found by removing each and comparing again."""
        family, own = read_family(self.model.config), self.model.config
        if family.stateful and self.backend.name == ForkBackend.name:
            return "Cause: it continues a cached prompt with other numbers than it computes a whole pair."
        if family.stateful:
            return (
                f"Cause: its layers of kind {', '.join(family.stateful)} carry a state along the row, which leaks "
                "from one response into the next."
            )
        for name, value in thresholds(own, self.reach).items():
            if self._agrees(small_config(own, self.reach, lifted=name), self.groups):
                return f"Cause: {name}={value} is ignored, or not taken on positions."
        config = small_config(own, self.reach)
        if self._agrees(config, self.groups, without_sinks=True):
            return "Cause: the attention sinks are ignored."
        if family.softcap is not None:
            uncapped = small_config(own, self.reach)
            uncapped.attn_logit_softcapping = None
            if self._agrees(uncapped, self.groups):
                return f"Cause: the soft-capping of attention scores at {family.softcap:g} is ignored."
        if self._agrees(config, expand(self.groups[0])[:1]):
            return "Cause: the mask, or the row plan, does not reach the attention: responses see each other."
        return "Cause: not known; one response alone differs as well."

    @torch.no_grad()
    def _agrees(self, config: Any, groups: list[GroupRow], *, without_sinks: bool = False) -> bool:
        losses = []
        for compute_loss in (self._one_by_one, self._packed):
            small = random_model(config, self.model.device, self.attention)
            sinks = [parameter for name, parameter in small.named_parameters() if name.endswith("sinks")]
            if without_sinks and not sinks:
                return False
            for sink in sinks if without_sinks else []:
                sink.fill_(-BEYOND)  # a sink without weight
            losses.append(compute_loss(small, groups))
        return abs(float(losses[1] / losses[0]) - 1) <= LOSS_TOLERANCE


def _random_groups() -> list[GroupRow]:
    """Build groups whose tree has every level.

    They share a system text, and two of them a document. Sequences are longer than the window. Responses have mixed
    lengths, one token among them, and two begin with the same trained tokens.
    """
    rng = random.Random(0)

    def draw(length: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(length)]

    system, document = draw(WINDOW), draw(WINDOW + 3)
    groups = []
    for prompt, lengths in (
        (system + document + draw(WINDOW), (WINDOW // 2, 2 * WINDOW, 1)),
        (system + document + draw(3), (WINDOW,)),
        (system + draw(WINDOW // 2), (3, WINDOW)),
    ):
        responses = [[10 + index, *draw(length - 1)] for index, length in enumerate(lengths)]
        responses.append([*responses[0][:2], *draw(4)])
        pairs = [Pair(prompt + own, [False] * len(prompt) + [True] * len(own)) for own in responses]
        groups.append(build_group_row(pairs))
    return groups


def _prove_real(
    model: Any, backend: Backend, row: list[GroupRow], plain: PlainForward, compute: Compute, pad_token_id: int
) -> float:
    """Return the root mean square difference of the NLL of real tokens in nats, or refuse the backend."""
    difference = _real_difference(model, backend, row, plain, compute, pad_token_id)
    refusal = _difference_found(model, backend, row, plain, difference)
    if refusal is not None:
        raise NotShareable(refusal)
    return difference


def _real_difference(
    model: Any, backend: Backend, row: list[GroupRow], plain: PlainForward, compute: Compute, pad_token_id: int
) -> float:
    pairs = list(chain.from_iterable(map(expand, row)))
    backend.prepare_model(model)
    with inference(model):
        every = packed_nll(model, backend, [row], compute, pad_token_id)
    return rms(torch.cat([every[index] for index in compared(pairs)]) - plain.nll)


def _difference_found(
    model: Any, backend: Backend, row: list[GroupRow], plain: PlainForward, difference: float
) -> str | None:
    """Return why the backend is refused, or None if the difference is within the tolerance."""
    if difference <= plain.tolerance:  # never true for NaN
        return None
    return (
        f"prefix_backend={backend.name} does not compute what this model computes: in a row of "
        f"{sum(len(group['input_ids']) for group in row)} real tokens the per-token NLL differs by "
        f"{difference:.1e} nats (root mean square over {len(plain.nll)} tokens), where the plain forward itself "
        f"moves by {plain.noise:.1e} with the shape of its batch (allowed: {plain.tolerance:.1e}). On a small "
        "random model of the same configuration it was exact, so something about the loaded model is special: a "
        "replaced attention or forward, a patch, or a hook. Remove it, or use layout=expanded."
    )
