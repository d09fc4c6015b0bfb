"""The collator: builds a batch of rows from prepared groups, in either layout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mrt_plugin.layout.group_row import GroupRow, as_group_row, count_responses, sequence_lengths, sequences_of
from mrt_plugin.layout.packing import fill_rows
from mrt_plugin.layout.responses import Place, find_responses
from mrt_plugin.layout.rows import Rows, stack
from mrt_plugin.layout.tree import Tree, build_tree


@dataclass
class GroupedResponseCollator:
    """Collate groups into rows of tensors (`mrt_plugin.layout.rows.Rows`, as a dict).

    The batch holds the same set of pairs in both layouts, so the layout never changes the meaning of a step. A group
    longer than `row_length` is split over several rows, each with the prompt. In `shared_prefix`, sequences with a
    common beginning go into one row if it has room.

    Args:
        tokenizer: provides the pad token. Rows are padded on the right; the tokenizer's padding side is ignored.
        layout: `shared_prefix`, or `expanded` for one pair per row.
        row_length: maximum tokens of a row; unlimited by default.
        packing: put several groups (in `expanded`: several pairs) into a row. Needs `row_length`.
        padding: accepted for callers that pass it (Axolotl) and ignored; rows are always padded to the longest.
        pad_to_multiple_of: round the padded length up to a multiple of this.
        return_tensors: must be `pt`.
        read_row: converts a dataset's row to the group that is trained.
        find_responses: add the tokens and scores of each response (`mrt_plugin.layout.responses.Responses`), which
            objectives that rank responses need.

    Raises:
        ValueError: for a layout or tensor type that does not exist, or a tokenizer without a pad token.

    Example:

    ```python
    from mrt_plugin import GroupedResponseCollator, MultiResponseOptions, load_groups, prepare_groups

    options = MultiResponseOptions(selector="random_k", k=2)
    rows, _ = prepare_groups(load_groups("pool.jsonl"), tokenizer, options, max_length=512, seed=0)
    collator = GroupedResponseCollator(tokenizer, layout="shared_prefix", row_length=1024)
    batch = collator([rows[0], rows[1]])
    batch["input_ids"].shape  # [rows, tokens]
    ```
    """

    tokenizer: PreTrainedTokenizerBase
    layout: str = "shared_prefix"
    row_length: int | None = None
    packing: bool = True
    padding: bool | str = True
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"
    read_row: Callable[[dict[str, Any]], GroupRow] = as_group_row
    find_responses: bool = False

    def __post_init__(self) -> None:
        if self.layout not in ("shared_prefix", "expanded"):
            raise ValueError(f"layout={self.layout!r}: a collator needs shared_prefix or expanded.")
        if self.return_tensors != "pt":
            raise ValueError(f"return_tensors={self.return_tensors!r}: only 'pt' is supported.")
        if self.tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no pad token: set tokenizer.pad_token before building the collator.")

    def __call__(self, examples: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
        """Collate groups, given as a list. Where a sampler packs (Axolotl), they are given as one list per row."""
        bins: Any = [examples] if isinstance(examples[0], dict) else examples
        read = [[self.read_row(row) for row in chosen] for chosen in bins]
        groups: list[GroupRow] = []
        arranged: list[tuple[Tree, list[Place]]] = []
        for chosen in read:
            first = len(groups)
            arranged += [(tree, [(first + group, at) for group, at in row]) for tree, row in self._arrange(chosen)]
            groups += chosen
        trees = [tree for tree, _ in arranged]
        rows = stack(trees, self.tokenizer.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of)
        batch = {**rows.to_batch(), "stats": self._stats(groups, rows)}
        if self.find_responses:
            batch |= find_responses(groups, arranged, rows.input_ids.shape[1]).to_batch()
        return batch

    def _stats(self, groups: list[GroupRow], rows: Rows) -> dict[str, int]:
        """Count the batch's contents for the logs. Filler groups, which train nothing, only count as tokens."""
        pairs = [count_responses(group) for group in groups if any(group["segment_units"])]
        tokens = int(rows.attention_mask.sum())
        expanded = sum(sum(sequence_lengths(group)) for group in groups)
        counts = {"groups": len(pairs), "pairs": sum(pairs), "tokens": tokens, "slots": rows.input_ids.numel()}
        return {**counts, "saved_tokens": expanded - tokens}

    def _arrange(self, groups: list[GroupRow]) -> list[tuple[Tree, list[Place]]]:
        """Return the tree of each row, with its sequences."""
        sequences, share = [sequences_of(group) for group in groups], self.layout == "shared_prefix"
        rows = fill_rows(sequences, self.row_length, packing=self.packing, share=share)
        return [(build_tree([sequences[group][place] for group, place in row], share=share), row) for row in rows]
