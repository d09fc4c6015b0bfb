"""Which layout a run uses, and why."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset

from mrt_plugin.attention import Backend, ExpandedBackend, NotShareable, prove, resolve_backend
from mrt_plugin.attention.adapters import refuse_row_adapters
from mrt_plugin.layout.group_row import GroupRow, as_group_row
from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.trainer.sharding import Sharding

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
    sharding: Sharding | None = None,
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
        sharding: how the weights are spread over processes; by default every process keeps them all.
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
                model, group, options, compute, tokenizer, gradient_checkpointing, sharding or Sharding(), agree
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
    sharding: Sharding,
    agree: Callable[[str | None], str | None],
) -> Backend:
    """The backend that every process found exact.

    Raises:
        NotShareable: if one of them did not, on all of them.
    """
    try:
        backend = _proved_backend(model, group, options, compute, tokenizer, gradient_checkpointing, sharding)
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
    sharding: Sharding,
) -> Backend:
    refuse_row_adapters(model)
    backend = resolve_backend(
        options.prefix_backend,
        model.config,
        device_type=model.device.type,
        gradient_checkpointing=gradient_checkpointing,
    )
    if backend.name == FORK and sharding.method is not None:
        raise NotShareable(
            f"prefix_backend=fork: {sharding.method} gathers weights for each forward and frees them after it, and "
            "the fork needs them over two forwards, as often as a process has groups. Use DDP, or layout=expanded."
        )
    if options.prefix_check and not sharding.somewhere:
        raise NotShareable(
            f"{sharding.method} spreads the weights before training, so the shared prefix cannot be proved on the "
            "loaded model. Prove it once without that (a run of one step will do) and then set prefix_check=False, or "
            "use layout=expanded."
        )
    backend.prepare_model(model)
    # Where only the first process of a machine has loaded the weights, it proves for the others.
    if options.prefix_check and (sharding.everywhere or PartialState().is_local_main_process):
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
