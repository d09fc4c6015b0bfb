"""Prepare groups for training: select, encode, drop pairs that are too long, lay out."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset, Features, Value

from mrt_plugin.encoding import Encoder, EncodingError
from mrt_plugin.groups.batches import batch_size
from mrt_plugin.groups.overlap import PROMPT_NAME, prompt_name
from mrt_plugin.layout.group_row import IGNORE, GroupRow, build_group_row, expand, join_pairs, split_group
from mrt_plugin.options import MultiResponseOptions, SelectionOptions, check_options, names_of
from mrt_plugin.scoring import softmax_weights
from mrt_plugin.selection.pool import candidates_of
from mrt_plugin.selection.run import run_selection
from mrt_plugin.trainer.redraw import DRAW, DRAW_FEATURE, Draw, rows_to_draw

logger = logging.getLogger(__name__)

COLUMNS = tuple(GroupRow.__annotations__)
"""Columns of a prepared dataset: the fields of a `GroupRow`."""

FORMAT = 2
"""Version of prepared rows. Raise it when the same groups and options give different rows, so that none is reused."""

MANY_DROPPED = 0.05
"""Share of dropped pairs above which the trained data no longer represents the dataset."""

_COUNTS = ("group", "pairs", "expanded", "shared", "trained")

_WITH_DRAWS = Features(
    {
        **DRAW_FEATURE["pool"],  # type: ignore[dict-item]
        **{name: Value("int64") for name in _COUNTS},
        PROMPT_NAME: Value("string"),
        DRAW: DRAW_FEATURE,
    }
)
"""Features of prepared rows with the column `draw`. `datasets` cannot infer its type from a batch of nulls."""


@dataclass
class PrepareReport:
    """Counts of a preparation.

    `groups + dropped_groups` is the number of groups read. `pairs + dropped_pairs` is the number of responses
    selected.
    """

    groups: int = 0
    rows: int = 0
    """Rows of the prepared dataset: more than `groups` if long groups were split."""
    pairs: int = 0
    trained_tokens: int = 0
    tokens_expanded: int = 0
    """Tokens of a forward pass if the prompt is copied for each response."""
    tokens_shared: int = 0
    """Tokens of a forward pass if each row holds the prompt once."""
    dropped_pairs: int = 0
    """Pairs longer than max_length."""
    dropped_groups: int = 0
    """Groups with no pair left."""

    @property
    def token_ratio(self) -> float:
        """Return expanded over shared tokens: the speed-up if tokens were the only cost."""
        return self.tokens_expanded / max(self.tokens_shared, 1)

    def as_dict(self) -> dict[str, Any]:
        """Return all counts and the token ratio."""
        return {**asdict(self), "token_ratio": self.token_ratio}


def prepare_groups(
    groups: Dataset,
    tokenizer: Any,
    options: MultiResponseOptions,
    *,
    max_length: int | None,
    seed: int,
    expanded_form: bool = False,
    split_rows: bool = False,
    num_proc: int | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    description: str = "train",
    held_out: bool = False,
    length_option: str = "max_length",
) -> tuple[Dataset, PrepareReport]:
    """Build a dataset whose rows are `GroupRow`s, one per group, each with the name of its prompt.

    Args:
        groups: as `load_groups` returns them.
        tokenizer: with its chat template, if it has one.
        options: selector, k and the rest; `row_length` is used if `split_rows` is set.
        max_length: limit in tokens of one prompt with one response; longer pairs are dropped and counted.
        seed: of the selection, unless `options.selection_seed` is set.
        expanded_form: build rows of whole pairs, without a shared prefix.
        split_rows: split groups longer than `options.row_length` into several rows of the dataset, for callers whose
            rows must not be longer. Otherwise the collator splits them.
        num_proc: number of processes; the result does not depend on it.
        chat_template_kwargs: passed to the chat template.
        description: names the dataset in progress bars and messages.
        held_out: keep every response, including those of weight 0: held-out groups are scored without weights.
        length_option: the user's name for `max_length`, for messages.

    Returns:
        The prepared dataset and the counts.

    Raises:
        CacheError: if the cache of embeddings and scores cannot be used.
        ValueError: if options contradict each other, or every group was dropped.
    """
    if held_out:
        values = {name: getattr(options, name) for name in names_of(MultiResponseOptions)}
        options = MultiResponseOptions(**{**values, **vars(SelectionOptions("all")), "redraw": "never"})
        groups = groups.remove_columns([name for name in groups.column_names if name == "weights"])
    check_options(options)
    if options.selection_seed is not None:
        seed = options.selection_seed
    if options.redraw == "epoch":
        chosen = _pools(groups, options.n, seed)
    else:
        selected = run_selection(groups, options, seed=seed, num_proc=num_proc)
        selected.report.log()
        groups, chosen = selected.groups, selected.picks
    if options.weights == "softmax" and "scores" not in groups.column_names:
        raise ValueError("weights='softmax' needs scores: give a column `scores`, or a `scorer`.")
    encoder = Encoder(tokenizer, prompt_format=options.prompt_format, chat_template_kwargs=chat_template_kwargs)
    prepared = groups.map(
        _prepare_batch,
        with_indices=True,
        batched=True,
        batch_size=batch_size(groups, 64),
        fn_kwargs={
            "encoder": encoder,
            "chosen": chosen,
            "options": options,
            "max_length": max_length,
            "expanded_form": expanded_form,
            "split_rows": split_rows,
            "seed": seed,
        },
        remove_columns=groups.column_names,
        features=_WITH_DRAWS if options.redraw == "epoch" else None,
        num_proc=num_proc,
        # datasets identifies a function by its name, so it could reuse a result of changed code
        load_from_cache_file=False,
        desc=f"Encoding the {description} groups",
    )
    report = _report(groups, chosen, prepared)
    prepared = prepared.remove_columns([name for name in _COUNTS if name in prepared.column_names])
    _announce(report, options, f"{length_option}={max_length}", description)
    return prepared, report


def is_prepared(dataset: Dataset) -> bool:
    """Return whether the rows are already `GroupRow`s."""
    return set(COLUMNS) <= set(dataset.column_names)


def _pools(groups: Dataset, n: int | None, seed: int) -> list[list[int]]:
    """Return the candidates of each group, for a trainer that draws from them anew each epoch."""
    names = [name for name in ("id", "responses", "scores", "weights") if name in groups.column_names]
    wanted = groups.select_columns(names)
    return [
        candidates_of(batch, place, n=n, seed=seed)
        for batch in wanted.iter(batch_size(wanted, 256))
        for place in range(len(batch["id"]))
    ]


def _prepare_batch(
    batch: dict[str, list[Any]],
    indices: Sequence[int],
    *,
    encoder: Encoder,
    chosen: Sequence[Sequence[int]],
    options: MultiResponseOptions,
    max_length: int | None,
    expanded_form: bool,
    split_rows: bool,
    seed: int,
) -> dict[str, list[Any]]:
    redraw = options.redraw == "epoch"
    names = (*COLUMNS, *_COUNTS, PROMPT_NAME, *([DRAW] if redraw else []))
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for position, index in enumerate(indices):
        try:
            kept, pool = _encode_kept(batch, position, chosen[index], encoder, options, max_length)
        except EncodingError as error:
            raise EncodingError(f"Group {batch['id'][position]!r} (row {index}): {error}") from error
        if sum(weight for _, weight in kept) <= 0:
            continue
        row = build_group_row(
            [pair for pair, _ in kept], options.loss_aggregation, [weight for _, weight in kept], **pool
        )
        for part, draw in _arrange(row, options, expanded_form, split_rows, seed):
            for name in COLUMNS:
                columns[name].append(part[name])  # type: ignore[literal-required]
            columns["group"].append(index)
            columns[PROMPT_NAME].append(prompt_name(batch["prompt"][position]))
            counts = _count(part)
            if redraw:
                columns[DRAW].append(draw)
                if draw is not None:  # count the whole pool once
                    counts = _count(row) if draw["first"] == 0 else dict.fromkeys(counts, 0)
            for name, count in counts.items():
                columns[name].append(count)
    return columns


def _encode_kept(
    batch: dict[str, list[Any]],
    position: int,
    chosen: Sequence[int],
    encoder: Encoder,
    options: MultiResponseOptions,
    max_length: int | None,
) -> tuple[list[tuple[Any, float]], dict[str, float]]:
    """Return the chosen pairs that fit, with their weights, and the means over the pool if the loss needs them."""
    responses = batch["responses"][position]
    weights = batch["weights"][position] if "weights" in batch else [1.0] * len(responses)
    if options.weights == "softmax":
        scores = batch["scores"][position]
        softmax = softmax_weights([scores[index] for index in chosen], options.weight_temperature)
        weights = dict(zip(chosen, softmax, strict=True))
    needs_pool = options.loss_aggregation == "prompt"
    wanted = range(len(responses)) if needs_pool else chosen
    encoded = encoder.encode_group(batch["prompt"][position], [responses[index] for index in wanted])
    pairs = dict(zip(wanted, encoded, strict=True))
    fitting = {index for index, pair in pairs.items() if max_length is None or len(pair.input_ids) <= max_length}
    kept = [(pairs[index], weights[index]) for index in chosen if index in fitting]
    if not kept or not needs_pool:
        return kept, {}
    pool = {"pool_mean_length": sum(pair.trained_length for pair in encoded) / len(encoded)}
    if options.selector == "random_k" and options.weights == "column":
        # For K uniform draws, dividing by the mean weight of their pool keeps each response's expected vote.
        drawn_from = [weights[index] for index in fitting if weights[index] > 0]
        pool["pool_mean_weight"] = sum(drawn_from) / len(drawn_from)
    return kept, pool


def _count(row: GroupRow) -> dict[str, int]:
    count, prefix = len(row["segment_lengths"]), row["prefix_length"]
    return {
        "pairs": count,
        "expanded": count * prefix + sum(row["segment_lengths"]),
        "shared": len(row["input_ids"]),
        "trained": sum(label != IGNORE for label in row["labels"]),
    }


def _arrange(
    row: GroupRow, options: MultiResponseOptions, expanded_form: bool, split_rows: bool, seed: int
) -> list[tuple[GroupRow, Draw | None]]:
    """Return the rows of a group, each with its draw per epoch, if it has one."""
    row_length = options.row_length if split_rows else None
    if options.redraw == "epoch" and len(row["segment_lengths"]) > options.k:
        return list(rows_to_draw(row, options.k, seed=seed, row_length=row_length, expanded=expanded_form))
    if expanded_form:
        row = join_pairs(expand(row))
    return [(part, None) for part in ([row] if row_length is None else split_group(row, row_length))]


def _report(groups: Dataset, chosen: Sequence[Sequence[int]], prepared: Dataset) -> PrepareReport:
    # datasets.map returns no columns if no batch has a row
    counts = {name: prepared[name][:] if len(prepared) else [] for name in _COUNTS}
    kept_groups, pairs = len(set(counts["group"])), sum(counts["pairs"])
    return PrepareReport(
        groups=kept_groups,
        rows=len(prepared),
        pairs=pairs,
        trained_tokens=sum(counts["trained"]),
        tokens_expanded=sum(counts["expanded"]),
        tokens_shared=sum(counts["shared"]),
        dropped_pairs=sum(len(indices) for indices in chosen) - pairs,
        dropped_groups=len(groups) - kept_groups,
    )


def _announce(report: PrepareReport, options: MultiResponseOptions, limit: str, description: str) -> None:
    raise_it = f"Raise {limit.partition('=')[0]}"
    if report.groups == 0:
        raise ValueError(
            f"Every group of the {description} data was dropped: none of the {report.dropped_pairs} selected pairs "
            f"fits {limit}. {raise_it}."
        )
    logger.info(
        "%s: %d groups, %d pairs (%.2f per prompt), %d trained tokens; %d tokens a pass expanded, %d shared (ratio "
        "%.2f).",
        description,
        report.groups,
        report.pairs,
        report.pairs / report.groups,
        report.trained_tokens,
        report.tokens_expanded,
        report.tokens_shared,
        report.token_ratio,
    )
    if options.redraw == "epoch":
        logger.info(
            "%s: redraw='epoch': these are whole pools, of which each epoch trains a random %d per prompt.",
            description,
            options.k,
        )
    if options.allocation == "adaptive" and options.loss_aggregation != "prompt":
        logger.warning(
            "%s: with allocation='adaptive' prompts keep different numbers of responses, and under "
            "loss_aggregation='%s' one with more weighs more. Set loss_aggregation='prompt' to give each one vote.",
            description,
            options.loss_aggregation,
        )
    if report.dropped_pairs:
        share = report.dropped_pairs / (report.dropped_pairs + report.pairs)
        many = f" With more than {100 * MANY_DROPPED:.0f} % gone, the longest responses are not learned."
        logger.warning(
            "%s: dropped %d pairs longer than %s (%.1f %% of those selected), and with them %d groups that had no "
            "other.%s %s to keep them.",
            description,
            report.dropped_pairs,
            limit,
            100 * share,
            report.dropped_groups,
            many if share > MANY_DROPPED else "",
            raise_it,
            extra={"problem": share > MANY_DROPPED},  # read by `mrt doctor`
        )
