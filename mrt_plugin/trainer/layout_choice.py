"""Choose the layout of a run and the attention backend that computes it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from mrt_plugin.attention.backend import Backend, Compute, ExpandedBackend, OneByOneBackend
from mrt_plugin.attention.family import NotShareable, refuse_row_adapters
from mrt_plugin.attention.fork import ForkBackend
from mrt_plugin.attention.plain import settle_plain
from mrt_plugin.attention.proof import prove, refusal_of
from mrt_plugin.attention.resolve import resolve_backend
from mrt_plugin.layout.beginnings import BLOCK
from mrt_plugin.layout.group_row import GroupRow, as_group_row, sequence_lengths, sequences_of, split_group
from mrt_plugin.layout.sharing import Sharing, measure_sharing
from mrt_plugin.layout.tree import build_tree, sort_by_beginning
from mrt_plugin.options import LayoutOptions
from mrt_plugin.trainer.prefix_order import PrefixTree

logger = logging.getLogger(__name__)

WORTH_SHARING = 1.05
"""`layout: auto` shares the prompt if the token ratio (expanded over shared tokens) is at least this."""

FORK = ForkBackend.name
MANY_FORWARDS = (FORK, OneByOneBackend.name)
"""The backends that run the model several times per batch. How often differs between processes."""

BATCHES, PACKED_GROUPS = 16, 64
"""Micro-batches from which the token ratio is estimated, and longest groups that may be in the row of the proof."""

COUNTED = 1024
"""Groups from which the saving of `group_by_prefix` is estimated."""


@dataclass(frozen=True)
class LayoutChoice:
    layout: str
    backend: Backend
    can_pack: bool
    """Whether rows may hold several groups (in `expanded`: several pairs)."""
    reason: str
    unproved: list[GroupRow] | None = None
    """A row with which the backend is proved in the first step, where weights are sharded only then."""


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
    tree: PrefixTree | None = None
    """The rows by their common beginnings, if `group_by_prefix` draws them by these."""
    in_order: bool = False
    """Whether the run trains the groups in the order of the dataset."""
    agree: Callable[[str | None], str | None] = lambda refusal: refusal
    """Takes why this process cannot share, or None, and returns the first such reason of any process."""


def choose_layout(setup: RunSetup, dataset: Dataset) -> LayoutChoice:
    """Resolve `layout` and `prefix_backend`; `auto` expands where sharing saves too little or is refused."""
    options = setup.options
    batches = draw_batches(len(dataset), setup.groups_per_batch, setup.tree, in_order=setup.in_order)
    batches = batches[:: -(-len(batches) // BATCHES)]
    sharing, row = sharing_of(dataset, options, batches), _row_to_prove(dataset, options)
    ratio = sharing.ratio
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
                unproved = row if options.prefix_check and setup.sharding is not None else None
                choice = LayoutChoice("shared_prefix" if share else "expanded", backend, True, reason, unproved)
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
    logger.info(
        "Of the tokens of complete sequences, sharing %s %.1f %% (%s), in %d micro-batches of the training data.",
        "saves" if choice.layout == "shared_prefix" else "would save",
        100 * sum(sharing.shares.values()),
        sharing.describe(),
        len(batches),
    )
    return choice


def _agreed_backend(setup: RunSetup, row: list[GroupRow]) -> Backend:
    """Return the backend that every process found exact."""
    model, options, sharding = setup.model, setup.options, setup.sharding
    device = setup.device_type or model.device.type
    try:
        with refusal_of(f"prefix_backend={options.prefix_backend} for {model.config.model_type}"):
            refuse_row_adapters(model)
            backend = resolve_backend(options.prefix_backend, model.config, device_type=device)
            if isinstance(backend, ForkBackend):
                backend.together = sharding is not None
            backend.prepare_model(model)
            if options.prefix_check:
                loaded = row if sharding is None else []  # sharded weights are proved in the first step
                prove(
                    model,
                    backend,
                    loaded[0] if loaded else None,
                    beside=loaded[1:],
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


def draw_batches(count: int, size: int, tree: PrefixTree | None = None, *, in_order: bool = False) -> list[list[int]]:
    """Return all rows in micro-batches: drawn at random, by the `tree` of their beginnings, or in order."""
    rng = np.random.default_rng(0)
    if tree is not None:
        return tree.batches(size, rng)
    order = list(range(count)) if in_order else rng.permutation(count).tolist()
    return [order[start : start + size] for start in range(0, count, size)]


def sharing_of(rows: Dataset, options: LayoutOptions, batches: Sequence[Sequence[int]]) -> Sharing:
    """Return what sharing saves in micro-batches of prepared rows, collated as in training."""

    def read(index: int) -> GroupRow:
        return as_group_row(rows[index])

    return measure_sharing(read, batches, row_length=options.row_length, packing=options.row_packing)


def announce_grouping(rows: Dataset, options: LayoutOptions, size: int, tree: PrefixTree, layout: str) -> None:
    """Log the tokens of a pass with and without `group_by_prefix`, from at most `COUNTED` groups."""
    if layout != "shared_prefix":
        logger.warning("group_by_prefix: it saves nothing in layout %s, and correlates the losses of a step.", layout)
        return
    tokens = []
    for batches in (draw_batches(len(rows), size, tree), draw_batches(len(rows), size)):
        sharing = sharing_of(rows, options, batches[: max(1, COUNTED // size)])
        tokens.append(sharing.shared / sharing.groups * len(rows))
    logger.info(
        "group_by_prefix: %s tokens a pass, where an ordinary shuffle has %s (%.2f times as many); micro-batches have "
        "%d groups.",
        *(f"{total:,.0f}" for total in tokens),
        tokens[1] / tokens[0],
        size,
    )
    if tokens[1] / tokens[0] < WORTH_SHARING:
        logger.warning(
            "group_by_prefix saves little: few prompts begin alike for %d tokens, or a row or micro-batch holds too "
            "few of them. Raise row_length or the batch size, or remove group_by_prefix.",
            BLOCK,
        )


def _row_to_prove(rows: Dataset, options: LayoutOptions) -> list[GroupRow]:
    """Return a row built as the run builds its rows: from the longest pair on, with what begins like it."""
    names = ["shared_lengths", "segment_lengths"]
    table = rows.select_columns(names).with_format("arrow")[:]
    counts = pc.list_value_length(table["segment_lengths"]).to_numpy()
    lengths = sum(pc.list_flatten(table[name]).to_numpy() for name in names)
    longest = np.maximum.reduceat(lengths, np.cumsum(counts) - counts)
    order = np.lexsort((-longest, counts == 1))  # the first group has several sequences if any group has
    packing = options.row_packing and options.row_length is not None
    candidates = [order[0], longest.argmax(), *order[1:PACKED_GROUPS]] if packing else order[:1]
    groups = [as_group_row(rows[index]) for index in dict.fromkeys(map(int, candidates))]
    if options.row_length is None:
        return groups
    groups = [max(split_group(g, options.row_length), key=lambda part: max(sequence_lengths(part))) for g in groups]
    first = sequences_of(groups[0])[0]
    shared = [sort_by_beginning([first, sequences_of(group)[0]])[1][1] for group in groups]
    row, sequences = groups[:1], sequences_of(groups[0])
    for index in sorted(range(1, len(groups)), key=lambda index: (index > 1, -shared[index])):
        more = [*sequences, *sequences_of(groups[index])]
        if len(build_tree(more).input_ids) <= options.row_length:
            row.append(groups[index])
            sequences = more
    return row
