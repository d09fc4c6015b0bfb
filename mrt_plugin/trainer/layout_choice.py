"""Choose the layout of a run and the attention backend that computes it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from mrt_plugin.attention.backend import Backend, Compute, ExpandedBackend, OneByOneBackend
from mrt_plugin.attention.family import NotShareable, refuse_row_adapters
from mrt_plugin.attention.plain import settle_plain
from mrt_plugin.attention.proof import prove, refusal_of
from mrt_plugin.attention.resolve import resolve_backend
from mrt_plugin.layout.group_row import GroupRow, as_group_row, split_group
from mrt_plugin.layout.packing import pack
from mrt_plugin.layout.tree import build_tree, sequences_of, sort_by_beginning
from mrt_plugin.options import LayoutOptions

logger = logging.getLogger(__name__)

WORTH_SHARING = 1.05
"""`layout: auto` shares the prompt if the token ratio (expanded over shared tokens) is at least this."""

FORK = "fork"
MANY_FORWARDS = (FORK, OneByOneBackend.name)
"""The backends that run the model several times per batch. How often differs between processes."""

BATCHES, PACKED_GROUPS = 16, 64
"""Micro-batches from which the token ratio is estimated, and longest groups that may be in the row of the proof."""


@dataclass(frozen=True)
class LayoutChoice:
    layout: str
    backend: Backend
    can_pack: bool
    """Whether rows may hold several groups (in `expanded`: several pairs)."""
    reason: str


@dataclass(frozen=True)
class RunSetup:
    """What the choice of a layout depends on, apart from the data. `model` is unwrapped."""

    model: Any
    options: LayoutOptions
    compute: Compute
    pad_token_id: int
    gradient_checkpointing: bool
    device_type: str | None = None
    sharding: str | None = None
    """What shards the weights over processes (`processes.read_sharding`), if anything does."""
    groups_per_batch: int = 1
    agree: Callable[[str | None], str | None] = lambda refusal: refusal
    """Takes why this process cannot share, or None, and returns the first such reason of any process."""


def choose_layout(setup: RunSetup, dataset: Dataset) -> LayoutChoice:
    """Resolve `layout` and `prefix_backend`; `auto` expands where sharing saves too little or is refused."""
    options = setup.options
    ratio, row = _token_ratio(dataset, options, setup.groups_per_batch), _row_to_prove(dataset, options)
    share = options.layout == "shared_prefix" or (options.layout == "auto" and ratio >= WORTH_SHARING)
    reason = "as requested" if options.layout == "expanded" else f"the token ratio is {ratio:.2f}"
    if options.layout == "auto" and not share:
        reason = f"sharing the prompt would save too little, {reason}"

    choice = LayoutChoice("expanded", ExpandedBackend(), False, reason)
    if share or options.row_packing:  # packed pairs are separated by the same rule as segments
        try:
            backend = _agreed_backend(setup, row)
        except NotShareable as refusal:
            if options.layout == "shared_prefix":
                raise
            if share:
                logger.warning("The prompt is copied for every response (layout expanded): %s", refusal)
                choice = replace(choice, reason=str(refusal))
        else:
            if share or backend.name != FORK:  # the fork gains nothing from pairs in one row
                choice = LayoutChoice("shared_prefix" if share else "expanded", backend, True, reason)
            else:
                backend.restore_model(setup.model)
    if choice.backend.name == ExpandedBackend.name:
        if options.prefix_check and setup.sharding is None:
            finding = None
            try:
                plain = settle_plain(setup.model, row, setup.compute, setup.pad_token_id)
                finding = None if plain.steady else f"{setup.model.config.model_type}: {plain.finding}"
            except Exception as error:  # if it matters, training raises it too
                kind = type(error).__name__
                logger.warning("The plain forward could not be compared with itself: %s: %s", kind, error)
            finding = setup.agree(finding)
            if finding is not None:
                logger.warning("One pair per forward, which is slow but exact: %s.", finding)
                choice = replace(choice, backend=OneByOneBackend(), reason=finding)
        choice.backend.prepare_model(setup.model)
    packed = "rows packed" if choice.can_pack and options.row_packing else "rows not packed"
    logger.info("Layout %s, backend %s, %s: %s.", choice.layout, choice.backend.name, packed, choice.reason)
    return choice


def _agreed_backend(setup: RunSetup, row: list[GroupRow]) -> Backend:
    """Return the backend that every process found exact."""
    model, options, sharding = setup.model, setup.options, setup.sharding
    device = setup.device_type or model.device.type
    try:
        with refusal_of(f"prefix_backend={options.prefix_backend} for {model.config.model_type}"):
            refuse_row_adapters(model)
            backend = resolve_backend(options.prefix_backend, model.config, device_type=device)
            if backend.name == FORK and sharding is not None:
                raise NotShareable(
                    f"prefix_backend=fork: {sharding} gathers weights for each forward and frees them after it, and "
                    "the fork needs them over two forwards. Use DDP, or layout=expanded."
                )
            if options.prefix_check and sharding is not None:
                raise NotShareable(
                    f"{sharding} takes the weights apart before they meet the accelerator, so the shared prefix "
                    "cannot be proved on the loaded model. Prove it on one accelerator (one step, of a smaller model "
                    "of the family if need be) and then set prefix_check=False, or use layout=expanded."
                )
            backend.prepare_model(model)
            if options.prefix_check:
                prove(
                    model,
                    backend,
                    row[0],
                    beside=row[1:],
                    reach=options.row_length,
                    compute=setup.compute,
                    pad_token_id=setup.pad_token_id,
                    gradient_checkpointing=setup.gradient_checkpointing,
                )
    except NotShareable as refusal:
        setup.agree(str(refusal))
        raise
    elsewhere = setup.agree(None)
    if elsewhere is not None:
        backend.restore_model(model)
        raise NotShareable(f"another process found: {elsewhere}")
    return backend


def _token_ratio(rows: Dataset, options: LayoutOptions, groups_per_batch: int) -> float:
    """Return the tokens of complete pairs over those of the trees, in micro-batches drawn at random."""
    count = min(len(rows), BATCHES * groups_per_batch)
    chosen = np.random.default_rng(0).permutation(len(rows))[:count].tolist()
    expanded = shared = 0
    for start in range(0, count, groups_per_batch):
        groups = [as_group_row(rows[index]) for index in chosen[start : start + groups_per_batch]]
        for members in [groups] if options.row_packing else [[group] for group in groups]:
            sequences = [sequence for group in members for sequence in sequences_of(group)]
            expanded += sum(len(sequence.input_ids) for sequence in sequences)
            everything = [list(range(len(sequences)))]
            packed = everything if options.row_length is None else pack(sequences, options.row_length)
            shared += sum(len(build_tree([sequences[index] for index in row]).input_ids) for row in packed)
    return expanded / shared


def _row_to_prove(rows: Dataset, options: LayoutOptions) -> list[GroupRow]:
    """Return a row built as the run builds its rows: from the longest pair on, with what begins like it."""
    table = rows.select_columns(["prefix_length", "segment_lengths"]).with_format("arrow")[:]
    counts = pc.list_value_length(table["segment_lengths"]).to_numpy()
    starts = np.cumsum(counts) - counts
    segments = pc.list_flatten(table["segment_lengths"]).to_numpy()
    longest = table["prefix_length"].to_numpy() + np.maximum.reduceat(segments, starts)
    order = np.lexsort((-longest, counts == 1))  # the first group has several responses if any group has
    packing = options.row_packing and options.row_length is not None
    candidates = [order[0], longest.argmax(), *order[1:PACKED_GROUPS]] if packing else order[:1]
    groups = [as_group_row(rows[index]) for index in dict.fromkeys(map(int, candidates))]
    if options.row_length is None:
        return groups
    groups = [max(split_group(g, options.row_length), key=lambda part: max(part["segment_lengths"])) for g in groups]
    first = sequences_of(groups[0])[0]
    shared = [sort_by_beginning([first, sequences_of(group)[0]])[1][1] for group in groups]
    row, sequences = groups[:1], sequences_of(groups[0])
    for index in sorted(range(1, len(groups)), key=lambda index: (index > 1, -shared[index])):
        more = [*sequences, *sequences_of(groups[index])]
        if len(build_tree(more).input_ids) <= options.row_length:
            row.append(groups[index])
            sequences = more
    return row
