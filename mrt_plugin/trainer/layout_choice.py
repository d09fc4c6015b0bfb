"""Which layout a run uses, and why."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from mrt_plugin.attention import Backend, ExpandedBackend, NotShareable, prove, resolve_backend
from mrt_plugin.attention.adapters import refuse_row_adapters
from mrt_plugin.layout.group_row import GroupRow, as_group_row
from mrt_plugin.options import MultiResponseOptions

logger = logging.getLogger(__name__)

WORTH_SHARING = 1.05
"""`layout: auto` shares where it saves at least this ratio of tokens."""

FORK = "fork"
"""The backend that runs one prompt at a time: it has nothing to gain from packed rows, and processes run the model as
often as they have groups."""

SAMPLED_ROWS = 2000
"""Rows looked at to estimate the token ratio and to find the group that the proof uses."""


@dataclass(frozen=True)
class LayoutChoice:
    """The layout of a run and the attention backend that computes it."""

    layout: str
    backend: Backend
    can_pack: bool
    """Whether rows may hold several groups (in `expanded`: several pairs)."""
    reason: str


def choose_layout(
    model: Any,
    dataset: Dataset,
    options: MultiResponseOptions,
    *,
    compute: Callable[[dict[str, Any], torch.Tensor], torch.Tensor],
    tokenizer: Any,
    gradient_checkpointing: bool,
    device_type: str | None = None,
    sharding: str | None = None,
    agree: Callable[[str | None], str | None] = lambda refusal: refusal,
) -> LayoutChoice:
    """Resolve `layout` and `prefix_backend` for a model and its prepared data.

    `auto` shares the prompt where that saves tokens, a backend can do it, and the proof finds the same numbers;
    otherwise it expands, and says why in one log line. A step means the same either way.

    Args:
        model: the unwrapped model.
        dataset: prepared rows.
        options: `layout`, `prefix_backend`, `prefix_check` and `row_packing` are read.
        compute: as `mrt_plugin.attention.Compute`.
        tokenizer: gives the pad token.
        gradient_checkpointing: whether activations are recomputed in the backward pass.
        device_type: where it trains; by default where the model is.
        sharding: what spreads the weights over processes (`mrt_plugin.trainer.sharding.read_sharding`), if anything.
        agree: takes why this process cannot share, or None, and returns the first such reason of any process, so that
            all choose the same layout.

    Raises:
        ValueError: if `layout="shared_prefix"` was asked for and cannot be had, with the reason.
    """
    ratio, group = _look_at(dataset)
    worth_it = ratio >= WORTH_SHARING
    share = options.layout == "shared_prefix" or (options.layout == "auto" and worth_it)
    if share:
        reason = f"the token ratio is {ratio:.2f}"
    elif options.layout == "expanded":
        reason = "as asked for"
    else:
        reason = f"sharing the prompt would save too little, the token ratio is {ratio:.2f}"

    choice = LayoutChoice("expanded", ExpandedBackend(), False, reason)
    if share or options.row_packing:  # packed pairs are kept apart by the same rule as segments
        try:
            backend = _agreed_backend(
                model,
                group,
                options,
                compute,
                tokenizer,
                gradient_checkpointing,
                device_type or model.device.type,
                sharding,
                agree,
            )
        except NotShareable as refusal:
            if options.layout == "shared_prefix":
                raise
            if share:
                logger.warning("The prompt is copied for every response (layout expanded): %s", refusal)
                choice = LayoutChoice("expanded", ExpandedBackend(), False, str(refusal))
        else:
            if share or backend.name != FORK:
                choice = LayoutChoice("shared_prefix" if share else "expanded", backend, True, reason)
            else:
                backend.restore_model(model)
    if choice.backend.name == ExpandedBackend.name:
        choice.backend.prepare_model(model)
    packed = "rows packed" if choice.can_pack and options.row_packing else "rows not packed"
    logger.info("Layout %s, backend %s, %s: %s.", choice.layout, choice.backend.name, packed, choice.reason)
    return choice


def _agreed_backend(
    model: Any,
    group: GroupRow,
    options: MultiResponseOptions,
    compute: Callable[[dict[str, Any], torch.Tensor], torch.Tensor],
    tokenizer: Any,
    gradient_checkpointing: bool,
    device_type: str,
    sharding: str | None,
    agree: Callable[[str | None], str | None],
) -> Backend:
    """The backend that every process found exact.

    Raises:
        NotShareable: if one of them did not, on all of them.
    """
    try:
        backend = _proved_backend(
            model, group, options, compute, tokenizer, gradient_checkpointing, device_type, sharding
        )
    except NotShareable as refusal:
        agree(str(refusal))
        raise
    elsewhere = agree(None)
    if elsewhere is not None:
        backend.restore_model(model)
        raise NotShareable(f"another process found: {elsewhere}")
    return backend


def _proved_backend(
    model: Any,
    group: GroupRow,
    options: MultiResponseOptions,
    compute: Callable[[dict[str, Any], torch.Tensor], torch.Tensor],
    tokenizer: Any,
    gradient_checkpointing: bool,
    device_type: str,
    sharding: str | None,
) -> Backend:
    refuse_row_adapters(model)
    backend = resolve_backend(
        options.prefix_backend,
        model.config,
        device_type=device_type,
        gradient_checkpointing=gradient_checkpointing,
    )
    if backend.name == FORK and sharding is not None:
        raise NotShareable(
            f"prefix_backend=fork: {sharding} gathers weights for each forward and frees them after it, and the fork "
            "needs them over two forwards, as often as a process has groups. Use DDP, or layout=expanded."
        )
    if options.prefix_check and sharding is not None:
        raise NotShareable(
            f"{sharding} takes the weights apart before they meet the accelerator, so the shared prefix cannot be "
            "proved on the loaded model. Prove it without that (one step on one accelerator, of a smaller model of "
            "the family where this one does not fit) and then set prefix_check=False, or use layout=expanded."
        )
    backend.prepare_model(model)
    if options.prefix_check:
        prove(model, backend, group, compute=compute, pad_token_id=tokenizer.pad_token_id)
    return backend


def _look_at(dataset: Dataset) -> tuple[float, GroupRow]:
    """The token ratio over a sample of the rows, and its longest group that has several responses if there is one."""
    sample = dataset.select(range(min(len(dataset), SAMPLED_ROWS)))
    expanded, shared = 0, 0
    best, best_rank = 0, (False, 0)
    for index, (prefix, lengths) in enumerate(zip(sample["prefix_length"], sample["segment_lengths"], strict=True)):
        expanded += len(lengths) * prefix + sum(lengths)
        shared += prefix + sum(lengths)
        rank = (len(lengths) > 1, prefix + sum(lengths))
        if rank > best_rank:
            best, best_rank = index, rank
    return expanded / shared, as_group_row(sample[best])
