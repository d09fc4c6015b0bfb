"""Resuming: check that the training data and its division into steps are those of the checkpoint."""

import hashlib
import logging
from typing import Any

import pyarrow
import pyarrow.compute
from datasets import Dataset
from transformers import TrainerCallback, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

RECORD = "mrt_training_data"  # in a checkpoint's `trainer_state.json`, under `stateful_callbacks`


class SameTrainingData(TrainerCallback):
    """Records the training data with every checkpoint, and refuses to resume with other data, where a resumed run
    would train some groups twice and others never."""

    def __init__(self, rows: Dataset, columns: list[str], **order: Any) -> None:
        self.rows = rows.select_columns([name for name in columns if name in rows.column_names])
        self.order = order

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not state.global_step and args.save_strategy == "no":
            return
        records: Any = state.stateful_callbacks
        found = {
            "rows": len(self.rows),
            "content": content_hash(self.rows),
            "rows per step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "seed of the order": args.seed if args.data_seed is None else args.data_seed,
            "train_sampling_strategy": str(args.train_sampling_strategy),
            **self.order,
        }
        if state.global_step and RECORD not in records:
            logger.warning("The checkpoint does not say which data it was trained on, so resuming cannot compare it.")
        # A checkpoint from before `group_by_prefix` existed was trained without it.
        recorded = {"group_by_prefix": False} | records.get(RECORD, found)
        changed = [name for name in found if recorded[name] != found[name]]
        different = "; ".join(f"{name}: {recorded[name]} then, {found[name]} now" for name in changed)
        if different and not args.ignore_data_skip:
            raise ValueError(
                f"The checkpoint of step {state.global_step} was trained on other data, or in other steps "
                f"({different}). Restore what was changed. To train its weights on the data of now, start a new run "
                "from them (model=, in a recipe base_model or lora_model_dir), or set ignore_data_skip=True."
            )
        if different:
            logger.warning("Resumed with ignore_data_skip and a change: %s.", different)
        records[RECORD] = found


def content_hash(rows: Dataset) -> str:
    """Return a hash of the values of all rows, in order. It does not depend on files or processes."""
    state = hashlib.blake2b(digest_size=16)
    for table in rows.with_format("arrow").iter(256):
        assert isinstance(table, pyarrow.Table)
        for name in sorted(table.column_names):
            _add(state, table.column(name).combine_chunks())
    return state.hexdigest()


def _add(state: Any, values: pyarrow.Array) -> None:
    """Add the values of an array to the hash, with the lengths of lists and the fields of structs."""
    if pyarrow.types.is_struct(values.type):
        for field in values.flatten():
            _add(state, field)
    elif pyarrow.types.is_list(values.type) or pyarrow.types.is_large_list(values.type):
        _add(state, pyarrow.compute.list_value_length(values))
        _add(state, values.flatten())
    else:
        if pyarrow.types.is_boolean(values.type):
            values = values.cast(pyarrow.int8())
        state.update(values.fill_null(-1).to_numpy(zero_copy_only=False).tobytes())
