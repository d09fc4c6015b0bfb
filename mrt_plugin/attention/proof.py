"""The proof before training: a backend computes the numbers that one pair at a time has, on this configuration, model
and data.

Part 1 compares loss and gradients on a small random fp32 model of the same configuration, tightly. Part 2 compares
per-token NLL on the real model and one real group, with a tolerance taken from how much the plain forward itself moves
when only the shape of its batch changes.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mrt_plugin.attention.backend import Backend, Compute
from mrt_plugin.attention.expanded import ExpandedBackend
from mrt_plugin.attention.family import NotShareable, read_family
from mrt_plugin.attention.small_model import VOCABULARY, WINDOW, random_model, small_config
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE, GroupRow, build_group_row, expand, take_segments
from mrt_plugin.layout.rows import Rows, build_rows

logger = logging.getLogger(__name__)

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
NOISE_FACTOR = 5.0
"""Part 2 allows this many times the plain forward's own noise ..."""
NOISE_FLOOR = 1e-4
"""... but at least this many nats, and at least ..."""
ROUNDING = 8.0
"""... this many times the spacing of the numbers that the model computes in. In bfloat16, `sdpa` and `eager` differ by
up to 5 of them."""
SEGMENTS = 3
"""Responses of the real group that part 2 looks at."""
BEYOND = 10_000
"""Longer than any row, and further down than any score."""


@dataclass(frozen=True)
class Proof:
    """What was compared and found."""

    backend: str
    loss_difference: float
    """Part 1: relative."""
    gradient_difference: float
    """Part 1: norm of the difference over the norm of the whole gradient."""
    nll_difference: float | None
    """Part 2: root mean square over the trained tokens, in nats; None where only part 1 was run."""
    nll_tolerance: float | None
    """Part 2: what was allowed, in nats."""
    tokens: int
    """Part 2: trained tokens compared."""
    seconds: float


def prove(
    model: Any,
    backend: Backend,
    group: GroupRow | None = None,
    *,
    compute: Compute | None = None,
    pad_token_id: int = 0,
) -> Proof:
    """Prove that a backend is exact for a model, or refuse.

    Args:
        model: the real model, prepared for the backend or not; it may be a PeftModel and quantized. Left prepared.
        backend: built from the model's configuration.
        group: a real group, best one whose pairs are longer than any window; without one, part 2 is left out.
        compute: how per-token NLL is computed from the model; by default from all logits.
        pad_token_id: any token id; padding is never looked at.

    Raises:
        NotShareable: if the numbers differ; says by how much and, where it is known, why. The model has its own
            attention back then.

    Example:

    ```python
    backend = resolve_backend("auto", model.config, device_type="cpu", gradient_checkpointing=False)
    print(prove(model, backend, group))
    ```
    """
    began = time.perf_counter()
    real: tuple[float | None, float | None, int] = (None, None, 0)
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            small = _prove_small(model, backend)
            if group is not None:
                real = _prove_real(model, backend, group, compute or all_logits(model), pad_token_id)
    except NotShareable:
        backend.restore_model(model)
        raise
    backend.prepare_model(model)
    nll_difference, nll_tolerance, tokens = real
    seconds = time.perf_counter() - began
    proof = Proof(backend.name, *small, nll_difference, nll_tolerance, tokens, seconds)
    logger.info("Shared prefix proved: %s", proof)
    return proof


def all_logits(model: Any) -> Compute:
    """A `compute` that holds all logits."""

    def compute(forward_kwargs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        logits = model(**forward_kwargs).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORE, reduction="none"
        )
        return torch.nn.functional.pad(nll, (1, 0))

    return compute


# ---------------------------------------------------------------- part 1: a small random model


def _prove_small(model: Any, backend: Backend) -> tuple[float, float]:
    groups = _random_groups()
    try:
        config = small_config(model.config)
        reference = random_model(config, model.device)
        expected, expected_gradient = _loss_and_gradient(reference, lambda: _one_by_one(reference, groups))
        shared = random_model(config, model.device)
        own = _same_kind(backend, shared)
        found, found_gradient = _loss_and_gradient(shared, lambda: _packed(shared, own, groups))
    except NotShareable:
        raise
    except Exception as error:  # whatever a model's code raises at a small size or at the backend's arguments
        raise NotShareable(
            f"prefix_backend={backend.name} could not be proved: a small {model.config.model_type} of this "
            f"configuration failed with {type(error).__name__}: {error}. Use layout=expanded."
        ) from error
    loss_difference = float(abs(found / expected - 1))
    gradient_difference = float((found_gradient - expected_gradient).norm() / expected_gradient.norm())
    # Written so that NaN is refused as well.
    if not (loss_difference <= LOSS_TOLERANCE and gradient_difference <= GRADIENT_TOLERANCE):
        raise NotShareable(
            f"prefix_backend={backend.name} does not compute what {model.config.model_type} computes: on a small "
            f"random model of this configuration, the loss differs by {loss_difference:.1e} "
            f"(allowed: {LOSS_TOLERANCE:g}) and the gradient by {gradient_difference:.1e} of its norm "
            f"(allowed: {GRADIENT_TOLERANCE:g}). "
            f"{_cause(model, backend, groups)} Use layout=expanded."
        )
    return loss_difference, gradient_difference


def _random_groups() -> list[GroupRow]:
    """Two groups: pairs beyond the small model's window, several responses of mixed lengths, a one-token response."""
    rng = random.Random(0)
    groups = []
    for prompt, lengths in ((3 * WINDOW, (WINDOW // 2, 2 * WINDOW, 1)), (WINDOW // 2, (3, WINDOW))):
        shared = [rng.randrange(3, VOCABULARY) for _ in range(prompt)]
        pairs = []
        for index, length in enumerate(lengths):
            own = [10 + index] + [rng.randrange(3, VOCABULARY) for _ in range(length - 1)]
            pairs.append(Pair(shared + own, [False] * prompt + [True] * length))
        groups.append(build_group_row(pairs))
    return groups


def _same_kind(backend: Backend, model: Any) -> Backend:
    """A backend of the same kind, for the small model's configuration; the model is prepared for it."""
    own: Backend = type(backend)(model.config)  # type: ignore[call-arg]
    own.prepare_model(model)
    return own


def _one_by_one(model: Any, groups: list[GroupRow]) -> torch.Tensor:
    compute = all_logits(model)
    losses = []
    for group in groups:
        for pair in expand(group):
            rows = _on_device(build_rows([[pair]], 0), model)
            nll = compute({"input_ids": rows.input_ids, "use_cache": False}, rows.labels)
            losses.append((nll * rows.loss_weights).sum())
    return torch.stack(losses).sum()


def _packed(model: Any, backend: Backend, groups: list[GroupRow]) -> torch.Tensor:
    rows = _on_device(build_rows([groups], 0), model)
    return (backend.token_nll(model, rows, all_logits(model)) * rows.loss_weights).sum()


def _loss_and_gradient(model: Any, loss: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        value = loss()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    flat = [
        torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    return value.detach(), torch.cat(flat)


# ---------------------------------------------------------------- part 2: the real model and data


def _prove_real(
    model: Any, backend: Backend, group: GroupRow, compute: Compute, pad_token_id: int
) -> tuple[float, float, int]:
    group = take_segments(group, _longest(group))
    with _inference(model):
        backend.restore_model(model)
        plain = ExpandedBackend()
        plain.prepare_model(model)
        alone = torch.cat([_nll(model, plain, [[pair]], compute, pad_token_id) for pair in expand(group)])
        together = [[pair] for pair in expand(group)]
        others = [
            _nll(model, plain, together, compute, pad_token_id),
            _nll(model, plain, together, compute, pad_token_id, pad_to_multiple_of=64),
        ]
        plain.restore_model(model)
        backend.prepare_model(model)
        shared = _nll(model, backend, [[group]], compute, pad_token_id)
    noise = max(_rms(other - alone) for other in others)
    tolerance = max(NOISE_FACTOR * noise, NOISE_FLOOR, ROUNDING * torch.finfo(_computing_dtype(model)).eps)
    difference = _rms(shared - alone)
    if not difference <= tolerance:
        raise NotShareable(
            f"prefix_backend={backend.name} does not compute what this model computes: on a real group the per-token "
            f"NLL differs by {difference:.1e} nats (root mean square over {len(alone)} tokens), where the plain "
            f"forward itself moves by {noise:.1e} with the shape of its batch (allowed: {tolerance:.1e}). On a small "
            "random model of the same configuration it was exact, so something about the loaded model is special: a "
            "replaced attention or forward, a patch, or a hook. Remove it, or use layout=expanded."
        )
    return difference, tolerance, len(alone)


def _longest(group: GroupRow) -> list[int]:
    lengths = group["segment_lengths"]
    ranked = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return sorted(ranked[:SEGMENTS])


def _nll(
    model: Any,
    backend: Backend,
    packed: list[list[GroupRow]],
    compute: Compute,
    pad_token_id: int,
    pad_to_multiple_of: int | None = None,
) -> torch.Tensor:
    """The NLL of the trained tokens, in the order of the responses."""
    rows = _on_device(build_rows(packed, pad_token_id, pad_to_multiple_of=pad_to_multiple_of), model)
    nll = backend.token_nll(model, rows, compute)
    return nll[rows.labels != IGNORE].double().cpu()


def _computing_dtype(model: Any) -> torch.dtype:
    device = model.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    dtype: torch.dtype = model.dtype
    return dtype


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def _on_device(rows: Rows, model: Any) -> Rows:
    return Rows.from_batch({name: value.to(model.device) for name, value in rows.to_batch().items()})


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    if getattr(model, "is_loaded_in_4bit", False):
        from bitsandbytes.nn import Linear4bit

        # On CPU these repack their weights for good at the first forward in evaluation mode, and compute differently
        # from then on, in training too.
        for module, _ in modes:
            if isinstance(module, Linear4bit):
                module.training = True
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


# ---------------------------------------------------------------- naming the cause


def _cause(model: Any, backend: Backend, groups: list[GroupRow]) -> str:
    """What is different about the family, found by taking it away and comparing again."""
    family = read_family(model.config)
    if family.stateful:
        return (
            f"Cause: its layers of kind {', '.join(family.stateful)} carry a state along the row, which leaks from "
            "one response into the next."
        )
    if family.window is not None and _agrees(model, backend, groups, without_window=True):
        return f"Cause: the sliding window of {family.window} is ignored, or not taken on positions."
    if _agrees(model, backend, groups, without_sinks=True):
        return "Cause: the attention sinks are ignored."
    if family.softcap is not None and _agrees(model, backend, groups, without_softcap=True):
        return f"Cause: the soft-capping of attention scores at {family.softcap:g} is ignored."
    if _agrees(model, backend, [build_group_row(_first_pair(groups))]):
        return "Cause: the mask, or the row plan, does not reach the attention: responses see each other."
    return "Cause: not known; one response alone differs as well."


def _first_pair(groups: list[GroupRow]) -> list[Pair]:
    pair = expand(groups[0])[0]
    return [Pair(pair["input_ids"], [label != IGNORE for label in pair["labels"]])]


@torch.no_grad()
def _agrees(
    model: Any,
    backend: Backend,
    groups: list[GroupRow],
    *,
    without_window: bool = False,
    without_sinks: bool = False,
    without_softcap: bool = False,
) -> bool:
    config = small_config(model.config)
    if without_window:
        config.sliding_window = BEYOND
    if without_softcap:
        config.attn_logit_softcapping = None
    losses = []
    for shared in (False, True):
        small = random_model(config, model.device)
        sinks = [parameter for name, parameter in small.named_parameters() if name.endswith("sinks")]
        if without_sinks and not sinks:
            return False
        for sink in sinks if without_sinks else []:
            sink.fill_(-BEYOND)  # a sink of no weight
        if shared:
            losses.append(_packed(small, _same_kind(backend, small), groups))
        else:
            losses.append(_one_by_one(small, groups))
    return abs(float(losses[1] / losses[0]) - 1) <= LOSS_TOLERANCE
