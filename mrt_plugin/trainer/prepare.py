"""Prepare groups for training: select, encode, drop pairs that are too long, lay out."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from mrt_plugin.encoding import Encoder, EncodingError
from mrt_plugin.groups.batches import batch_size
from mrt_plugin.groups.overlap import PROMPT_NAME, prompt_name
from mrt_plugin.layout.group_row import (
    COLUMNS,
    IGNORE,
    SCORES,
    GroupRow,
    build_group_row,
    count_responses,
    refuse_old_rows,
    sequence_lengths,
    split_group,
    unshare,
)
from mrt_plugin.options import LayoutOptions, LossOptions, MultiResponseOptions, check_options, names_of, ranks
from mrt_plugin.scoring import softmax_weights
from mrt_plugin.selection.pool import candidates_of
from mrt_plugin.selection.run import run_selection
from mrt_plugin.trainer.redraw import DRAW, DRAW_FEATURE, ROW_FEATURE, RowDraw, rows_to_draw
from mrt_plugin.trainer.run_facts import DataFacts, describe_data

logger = logging.getLogger(__name__)

FORMAT = 3
"""Version of prepared rows. Raise it when the same groups and options give different rows, so that none is reused."""

MANY_DROPPED = 0.05
"""Share of dropped pairs above which the trained data no longer represents the dataset."""

_LENGTHS = ("segment_lengths", "shared_lengths")

_SUMS = ("pairs", "trained_tokens", "tokens_expanded", "tokens_shared")


@dataclass
class PrepareReport:
    """Counts of a preparation. Dropped pairs are longer than max_length; dropped groups have too few pairs left."""

    groups: int
    rows: int
    dropped_pairs: int
    dropped_groups: int
    pairs: int
    trained_tokens: int
    tokens_expanded: int
    """Tokens of a forward pass if the prompt is copied for each response; shared, if each row holds it once."""
    tokens_shared: int
    unranked: "Unranked | None" = None
    """For an objective that ranks responses: what its scores leave out."""
    data: DataFacts | None = None
    """What is known of training groups, for trackers and the model card; None for held-out groups."""

    @property
    def token_ratio(self) -> float:
        """Return expanded over shared tokens: the speed-up if tokens were the only cost."""
        return self.tokens_expanded / max(self.tokens_shared, 1)


@dataclass(frozen=True)
class Unranked:
    """Counts of what an objective that ranks responses cannot train on."""

    few: int
    """Groups with fewer than two distinct responses that have a score."""
    equal: int
    """Other groups without two distinct responses of different scores."""
    unscored: int
    """Responses without a score, in the groups that are kept."""

    @property
    def groups(self) -> int:
        return self.few + self.equal

    def __str__(self) -> str:
        return (
            f"{self.few} groups have fewer than two distinct responses with a score, and {self.equal} have equal "
            "scores only"
        )


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
    """Select, encode and lay out groups: return one row of tokens per group, as a grouped trainer reads it.

    A row has the columns of a `GroupRow`, and the name of its prompt.

    Args:
        groups: as `load_groups` returns them.
        tokenizer: with its chat template, if it has one.
        options: selector, k and the rest; `row_length` is used if `split_rows` is set.
        max_length: limit in tokens of one prompt with one response, in each of its sequences; longer pairs are dropped
            and counted.
        seed: of the selection, unless `options.selection_seed` is set.
        expanded_form: build rows of complete pairs, without a shared prefix.
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
        EncodingError: if a prompt or response cannot be turned into tokens. The message names the group.
        ValueError: if options contradict each other, or every group was dropped.

    Example:

    ```python
    from mrt_plugin import MultiResponseOptions, load_groups, prepare_groups

    options = MultiResponseOptions(selector="random_k", k=2)
    rows, report = prepare_groups(load_groups("pool.jsonl"), tokenizer, options, max_length=512, seed=0)
    print(report.pairs, rows[0]["segment_lengths"])
    ```
    """
    if held_out:
        kept = {name: getattr(options, name) for name in names_of(LayoutOptions, LossOptions)}
        options = MultiResponseOptions(selector="all", **kept)
        groups = groups.remove_columns([name for name in groups.column_names if name == "weights"])
    check_options(options)
    if options.selection_seed is not None:
        seed = options.selection_seed
    data = None if held_out else describe_data(groups, options, seed)
    if options.redraw == "epoch":
        names = [name for name in ("id", "responses", "scores", "weights") if name in groups.column_names]
        pools = groups.select_columns(names)
        batches = pools.iter(batch_size(pools, 256))
        chosen = [candidates_of(b, place, n=options.n, seed=seed) for b in batches for place in range(len(b["id"]))]
    else:
        selected = run_selection(groups, options, seed=seed, num_proc=num_proc)
        selected.report.log()
        groups, chosen = selected.groups, selected.picks
    if options.weights == "softmax" and "scores" not in groups.column_names:
        raise ValueError("weights='softmax' needs scores: give a column `scores`, or a `scorer`.")
    unranked = None
    if ranks(options) and not held_out:
        chosen, unranked = _keep_ranked(groups, chosen, options.objective, description)
    encoder = Encoder(tokenizer, prompt_format=options.prompt_format, chat_template_kwargs=chat_template_kwargs)
    row_length = options.row_length if split_rows else None
    # `datasets` cannot infer the type of the column `draw` from a batch of nulls.
    drawn = {**ROW_FEATURE, **dict.fromkeys(("group", *_SUMS), Value("int64")), PROMPT_NAME: Value("string")}
    prepared = groups.map(
        _Builder(encoder, options, chosen, max_length, row_length, expanded_form, seed, held_out).rows_of_batch,
        with_indices=True,
        batched=True,
        batch_size=batch_size(groups, 64),
        remove_columns=groups.column_names,
        features=Features({**drawn, DRAW: DRAW_FEATURE}) if options.redraw == "epoch" else None,
        num_proc=num_proc,
        # datasets identifies a function by its name, so it could reuse a result of changed code
        load_from_cache_file=False,
        desc=f"Encoding the {description} groups",
    )
    # datasets.map returns no columns if no batch has a row
    counts = {name: prepared[name][:] if len(prepared) else [] for name in ("group", *_SUMS)}
    sums = {name: sum(counts[name]) for name in _SUMS}
    kept_groups = len(set(counts["group"]))
    dropped = sum(map(len, chosen)) - sums["pairs"]
    gone = {"dropped_pairs": dropped, "dropped_groups": len(groups) - kept_groups}
    if data is not None:
        data = replace(data, trained_groups=kept_groups, pairs=sums["pairs"], **gone)
    report = PrepareReport(kept_groups, len(prepared), **gone, **sums, unranked=unranked, data=data)
    if ranks(options) and split_rows and options.row_length is not None:
        _refuse_split(prepared, options.row_length, options.objective, description)
    _announce(report, options, f"{length_option}={max_length}", description)
    return prepared.remove_columns([name for name in counts if name in prepared.column_names]), report


def _keep_ranked(
    groups: Dataset, chosen: Sequence[Sequence[int]], objective: str, description: str
) -> tuple[list[list[int]], Unranked]:
    """Return the responses with a score of each group that can be ranked; none of the other groups."""
    if "scores" not in groups.column_names:
        raise ValueError(
            f"objective={objective!r} ranks responses by their scores, and the {description} data has none: give a "
            "column `scores`, or a `scorer`."
        )
    if "weights" in groups.column_names:
        raise ValueError(
            f"objective={objective!r} ranks responses and takes no weights: remove the column `weights` from the "
            f"{description} data, or use objective='nll'."
        )
    kept: list[list[int]] = []
    few = equal = unscored = 0
    for batch in groups.select_columns(["responses", "scores"]).iter(batch_size(groups, 256)):
        for responses, scores in zip(batch["responses"], batch["scores"], strict=True):
            own = chosen[len(kept)]
            scored = [index for index in own if scores[index] is not None and math.isfinite(scores[index])]
            if can_rank([str(responses[index]) for index in scored], [scores[index] for index in scored]):
                unscored += len(own) - len(scored)
                kept.append(scored)
                continue
            few += (alone := len({str(responses[index]) for index in scored}) < 2)
            equal += not alone
            kept.append([])
    found = Unranked(few, equal, unscored)
    if not any(kept):
        raise ValueError(
            f"objective={objective!r} needs two different responses with different scores in a group, and no group of "
            f"the {description} data has them: {found}. Keep more responses (k, or another selector), score them more "
            "finely, or use objective='nll'."
        )
    return kept, found


def can_rank(responses: Sequence[str], scores: Sequence[float]) -> bool:
    """Return whether two different responses have different scores."""
    pairs = set(zip(responses, scores, strict=True))
    return any(one != other and score > least for one, score in pairs for other, least in pairs)


def _refuse_split(rows: Dataset, row_length: int, objective: str, description: str) -> None:
    """Refuse groups that do not fit a row: their parts could get into different micro-batches."""
    sizes = np.array([sum(lengths) for lengths in rows["segment_lengths"]], dtype=np.int64)
    long = int((sizes > row_length).sum())
    if long:
        raise ValueError(
            f"objective={objective!r} compares all responses of a group in one row, and {long} of {len(rows)} "
            f"groups of the {description} data have more than row_length={row_length} tokens: a row_length of "
            f"{sizes.max()} would do (in Axolotl, sequence_len). Or lower k, or max_length."
        )


def is_prepared(dataset: Dataset) -> bool:
    refuse_old_rows(dataset.column_names)
    return set(COLUMNS) <= set(dataset.column_names)


def row_tokens(rows: Dataset, layout: str) -> np.ndarray:
    """Return the tokens that each prepared row has in a layout, [rows]."""
    own, shared = (np.array([sum(lengths) for lengths in rows[name]], dtype=np.int64) for name in _LENGTHS)
    return own if layout == "shared_prefix" else own + shared


def beginnings_of(rows: Dataset) -> Iterator[np.ndarray]:
    """Yield the tokens that all sequences of each prepared row have in common."""
    for batch in rows.select_columns(["input_ids", "shared_lengths"]).iter(1000):
        for tokens, shared in zip(batch["input_ids"], batch["shared_lengths"], strict=True):
            yield np.array(tokens[: min(shared[1:], default=None)])


@dataclass(frozen=True)
class _Builder:
    encoder: Encoder
    options: MultiResponseOptions
    chosen: Sequence[Sequence[int]]
    max_length: int | None
    row_length: int | None
    expanded_form: bool
    seed: int
    held_out: bool

    def rows_of_batch(self, batch: dict[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        groups = ({name: column[place] for name, column in batch.items()} for place in range(len(indices)))
        rows = [row for index, group in zip(indices, groups, strict=True) for row in self._rows_of_group(group, index)]
        names = [*COLUMNS, "group", *_SUMS, PROMPT_NAME]
        names += [DRAW] if self.options.redraw == "epoch" else []
        names += [SCORES] if ranks(self.options) else []
        return {name: [row[name] for row in rows] for name in names}

    def _rows_of_group(self, group: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
        """Yield the group's rows with their counts."""
        try:
            row = self._encode(group, self.chosen[index])
        except EncodingError as error:
            raise EncodingError(f"Group {group['id']!r} (row {index}): {error}") from error
        if row is None:
            return
        k, expanded = self.options.k, self.expanded_form
        rows: list[tuple[GroupRow, RowDraw | None]]
        if self.options.redraw == "epoch" and count_responses(row) > k:
            rows = list(rows_to_draw(row, k, seed=self.seed, row_length=self.row_length, expanded=expanded))
        else:
            row = unshare(row) if expanded else row
            length = None if ranks(self.options) else self.row_length  # a group that is ranked stays whole
            parts = [row] if length is None else split_group(row, length)
            rows = [(part, None) for part in parts]
        # The rows of one group count it once: with its pool, if they draw from it.
        counts = {
            "pairs": count_responses(row),
            "trained_tokens": sum(label != IGNORE for label in row["labels"]),
            "tokens_expanded": sum(sequence_lengths(row)),
            "tokens_shared": len(row["input_ids"]) if rows[0][1] else sum(len(part["input_ids"]) for part, _ in rows),
        }
        for part, draw in rows:
            yield {**part, **counts, "group": index, PROMPT_NAME: prompt_name(group["prompt"]), DRAW: draw}
            counts = dict.fromkeys(_SUMS, 0)

    def _encode(self, group: dict[str, Any], chosen: Sequence[int]) -> GroupRow | None:
        """Return the row of the chosen pairs that fit, or None if none fits or all that fit have weight 0."""
        options, responses = self.options, group["responses"]
        if not chosen:
            return None
        weights = group.get("weights") or [1.0] * len(responses)
        if options.weights == "softmax":
            softmax = softmax_weights([group["scores"][index] for index in chosen], options.weight_temperature)
            weights = dict(zip(chosen, softmax, strict=True))
        needs_pool = options.loss_aggregation == "prompt"
        wanted = range(len(responses)) if needs_pool else chosen
        texts = [responses[index] for index in wanted]
        encoded = self.encoder.encode_responses(group["prompt"], texts, options.turn_context)
        sequences = dict(zip(wanted, encoded, strict=True))
        limit = self.max_length
        longest = {index: max(len(pair.input_ids) for pair in own) for index, own in sequences.items()}
        fitting = {index for index, length in longest.items() if limit is None or length <= limit}
        kept = [index for index in chosen if index in fitting]
        pool: dict[str, Any] = {}
        if kept and needs_pool:
            pool["pool_mean_length"] = sum(pair.trained_length for own in encoded for pair in own) / len(encoded)
            if options.selector == "random_k" and options.weights == "column":
                # For K uniform draws, dividing by the mean weight of their pool keeps each response's expected vote.
                drawn_from = [weights[index] for index in fitting if weights[index] > 0]
                pool["pool_mean_weight"] = sum(drawn_from) / len(drawn_from)
        votes = [weights[index] for index in kept]
        if sum(votes) <= 0:
            return None
        encoded = [sequences[index] for index in kept]
        if not ranks(options):
            return build_group_row(encoded, options.loss_aggregation, votes, **pool)
        scores = [_number(score) for score in group.get("scores") or [None] * len(responses)]
        kept_scores = [scores[index] for index in kept]
        if not self.held_out and not can_rank([str(responses[index]) for index in kept], kept_scores):
            return None
        # A group has one vote, so its responses have shares of one unit.
        return build_group_row(encoded, "prompt", scores=kept_scores)


def _number(score: float | None) -> float:
    return math.nan if score is None or not math.isfinite(score) else float(score)


def _announce(report: PrepareReport, options: MultiResponseOptions, limit: str, description: str) -> None:
    option = limit.partition("=")[0]
    if report.groups == 0:
        what = f"none of the {report.dropped_pairs} selected pairs fits {limit}. Raise {option}."
        raise ValueError(f"Every group of the {description} data was dropped: {what}")
    logger.info(
        f"{description}: {report.groups} groups, {report.pairs} pairs ({report.pairs / report.groups:.2f} per "
        f"prompt), {report.trained_tokens} trained tokens; {report.tokens_expanded} tokens a pass expanded, "
        f"{report.tokens_shared} shared (ratio {report.token_ratio:.2f})."
    )
    if options.redraw == "epoch":
        logger.info(f"{description}: these are complete pools: each epoch trains {options.k} random responses.")
    if report.unranked is not None and (report.unranked.groups or report.unranked.unscored):
        logger.warning(
            f"{description}: objective={options.objective!r} cannot rank {report.unranked.groups} groups, which are "
            f"dropped: {report.unranked}. Left out as well: {report.unranked.unscored} responses without a score."
        )
    if options.allocation == "adaptive" and options.loss_aggregation != "prompt" and not ranks(options):
        logger.warning(
            f"{description}: with allocation='adaptive' and loss_aggregation={options.loss_aggregation!r}, a prompt "
            "with more responses weighs more. Set loss_aggregation='prompt' to give each one vote."
        )
    if report.dropped_pairs:
        share = report.dropped_pairs / (report.dropped_pairs + report.pairs)
        alone, others = (", or left with none to rank against", "too few") if ranks(options) else ("", "no")
        short = report.dropped_groups - (report.unranked.groups if report.unranked else 0)
        with_them = f", and with them {short} groups that had {others} other" if short else ""
        many = f" With more than {100 * MANY_DROPPED:.0f} % gone, the longest responses are not learned."
        logger.warning(
            f"{description}: dropped {report.dropped_pairs} pairs longer than {limit}{alone} ({100 * share:.1f} % of "
            f"those selected){with_them}."
            f"{many if share > MANY_DROPPED else ''} Raise {option} to keep them.",
            extra={"problem": share > MANY_DROPPED},  # read by `mrt doctor`
        )
