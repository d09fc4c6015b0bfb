"""The proof before training: a backend gives the same numbers as a forward of one pair at a time.

The proof holds for the configuration, model and data of the run. Part 1 compares loss and gradients on a small random
fp32 model of the same configuration. It uses the attention of the loaded model and a tight tolerance. Part 2 compares
per-token NLL on the real model and a real row. Its tolerance comes from how much the plain forward changes when only
the shape of its batch changes. That tolerance has a ceiling.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from mrt_plugin.attention.backend import Backend, Compute
from mrt_plugin.attention.family import NotShareable, exact_attention, read_family, text_attention
from mrt_plugin.attention.plain import PlainForward, compared, inference, on_device, packed_nll, rms, settle_plain
from mrt_plugin.attention.small_model import BEYOND, VOCABULARY, WINDOW, random_model, small_config, thresholds
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE, GroupRow, build_group_row, expand
from mrt_plugin.layout.rows import build_rows

logger = logging.getLogger(__name__)

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Proof:
    """The result of a proof."""

    backend: str
    loss_difference: float
    """Part 1: relative difference of the losses."""
    gradient_difference: float
    """Part 1: norm of the difference of the gradients, divided by the norm of the gradient."""
    nll_difference: float | None
    """Part 2: root mean square over the trained tokens, in nats; None where only part 1 was run."""
    nll_tolerance: float | None
    """Part 2: the allowed difference, in nats."""
    tokens: int
    """Part 2: number of trained tokens compared."""
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
) -> Proof:
    """Prove that a backend is exact for a model, or raise.

    Args:
        model: the real model, prepared for the backend or not. It may be a PeftModel and quantized. It is left
            prepared, with `eager` as its plain attention where its own depends on the shape of a batch.
        backend: the backend, built from the model's configuration.
        group: a real group, preferably the one with the longest pair of the run. Without a group, part 2 is skipped.
        beside: the groups that follow it in a packed row of the run.
        reach: the longest row of the run, in tokens. Thresholds beyond it are not tested. By default all are.
        compute: how per-token NLL is computed from the model; by default from all logits.
        pad_token_id: any token id; padding does not affect the result.

    Raises:
        NotShareable: if the numbers differ. The message says by how much and, if it is known, why. Any other error
            becomes the cause of this one. The model's previous attention is then restored.

    Example:

    ```python
    backend = resolve_backend("auto", model.config, device_type="cpu", gradient_checkpointing=False)
    print(prove(model, backend, group))
    ```
    """
    began = time.perf_counter()
    compute = compute or all_logits(model)
    row = [] if group is None else [group, *beside]
    difference = None
    backend.restore_model(model)
    try:
        with (
            refusal_of(f"prefix_backend={backend.name} could not be proved: {model.config.model_type}"),
            torch.random.fork_rng([model.device] if model.device.type == "cuda" else []),
        ):
            plain = _settled(model, row, compute, pad_token_id) if row else None
            small = _SmallProof(model, backend, reach).run()
            if plain is not None:
                difference = _prove_real(model, backend, row, plain, compute, pad_token_id)
    except NotShareable:
        backend.restore_model(model)
        raise
    backend.prepare_model(model)
    tolerance, tokens = (None, 0) if plain is None else (plain.tolerance, len(plain.nll))
    proof = Proof(backend.name, *small, difference, tolerance, tokens, time.perf_counter() - began)
    logger.info("Shared prefix proved: %s", proof)
    return proof


@contextmanager
def refusal_of(what: str) -> Iterator[None]:
    """Convert any exception to `NotShareable`, with the exception as its cause. The message begins with `what`.

    Raises:
        NotShareable: for any other exception.
    """
    try:
        yield
    except NotShareable:
        raise
    except Exception as error:
        raise NotShareable(f"{what} failed with {type(error).__name__}: {error}. Use layout=expanded.") from error


def _settled(model: Any, row: list[GroupRow], compute: Compute, pad_token_id: int) -> PlainForward:
    plain = settle_plain(model, row, compute, pad_token_id)
    if not plain.steady:
        raise NotShareable(
            f"{model.config.model_type} depends on what stands beside a pair: {plain.finding}. It is exact one pair "
            "per forward only: use layout=expanded, which trains it so."
        )
    return plain


def all_logits(model: Any) -> Compute:
    """Return a `compute` that keeps all logits in memory."""

    def compute(forward_kwargs: dict[str, Any], shift_labels: torch.Tensor) -> torch.Tensor:
        logits = model(**forward_kwargs).logits.float().transpose(1, 2)
        return torch.nn.functional.cross_entropy(logits, shift_labels, ignore_index=IGNORE, reduction="none")

    return compute


# ---------------------------------------------------------------- part 1: a small random model


class _SmallProof:
    """Comparisons on small random models of the configuration, between one pair at a time and packed rows."""

    def __init__(self, model: Any, backend: Backend, reach: int | None) -> None:
        self.model, self.backend, self.reach = model, backend, reach
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

    def _build(self, config: Any) -> Any:
        return random_model(config, self.model.device, self.attention)

    def _loss_and_gradient(
        self, config: Any, loss: Callable[[Any, list[GroupRow]], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model = self._build(config)
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
        backend: Backend = type(self.backend)(model.config)  # type: ignore[call-arg]
        backend.prepare_model(model)
        rows = on_device(build_rows([groups], 0), model)
        return (backend.token_nll(model, rows, all_logits(model)) * rows.loss_weights).sum()

    def _cause(self) -> str:
        """Return the feature of the family that causes the difference, found by removing each and comparing again."""
        family = read_family(self.model.config)
        if family.stateful:
            return (
                f"Cause: its layers of kind {', '.join(family.stateful)} carry a state along the row, which leaks "
                "from one response into the next."
            )
        for name, value in thresholds(self.model.config, self.reach).items():
            if self._agrees(small_config(self.model.config, self.reach, lifted=name), self.groups):
                return f"Cause: {name}={value} is ignored, or not taken on positions."
        config = small_config(self.model.config, self.reach)
        if self._agrees(config, self.groups, without_sinks=True):
            return "Cause: the attention sinks are ignored."
        if family.softcap is not None:
            uncapped = small_config(self.model.config, self.reach)
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
            small = self._build(config)
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


# ---------------------------------------------------------------- part 2: the real model and data


def _prove_real(
    model: Any, backend: Backend, row: list[GroupRow], plain: PlainForward, compute: Compute, pad_token_id: int
) -> float:
    pairs = list(chain.from_iterable(map(expand, row)))
    backend.prepare_model(model)
    with inference(model):
        every = packed_nll(model, backend, [row], compute, pad_token_id)
    difference = rms(torch.cat([every[index] for index in compared(pairs)]) - plain.nll)
    if not difference <= plain.tolerance:
        raise NotShareable(
            f"prefix_backend={backend.name} does not compute what this model computes: in a row of "
            f"{sum(len(group['input_ids']) for group in row)} real tokens the per-token NLL differs by "
            f"{difference:.1e} nats (root mean square over {len(plain.nll)} tokens), where the plain forward itself "
            f"moves by {plain.noise:.1e} with the shape of its batch (allowed: {plain.tolerance:.1e}). On a small "
            "random model of the same configuration it was exact, so something about the loaded model is special: a "
            "replaced attention or forward, a patch, or a hook. Remove it, or use layout=expanded."
        )
    return difference
