"""The reference log-probabilities of `objective: plackett_luce`: computed once, before training, and cached."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset, List, Value
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mrt_plugin.attention.backend import Backend, ExpandedBackend
from mrt_plugin.groups.write import whole_file
from mrt_plugin.layout.collator import GroupedResponseCollator
from mrt_plugin.layout.group_row import COLUMNS, REFERENCES, as_group_row, count_responses
from mrt_plugin.layout.responses import Responses
from mrt_plugin.layout.rows import Rows
from mrt_plugin.loss.token_nll import TokenNLL
from mrt_plugin.places import check_model
from mrt_plugin.scoring.cache import cache_directory
from mrt_plugin.trainer.callbacks.resuming import content_hash
from mrt_plugin.trainer.processes import from_main_process

logger = logging.getLogger(__name__)

INITIAL = "initial"


@dataclass(frozen=True)
class Reference:
    """A frozen model, and how rows go through it."""

    model: Any
    backend: Backend
    collator: GroupedResponseCollator
    token_nll: TokenNLL
    batch_size: int

    def log_probabilities(self, rows: Dataset, numbers: range, accelerator: Accelerator) -> list[list[float]]:
        """Return the summed log-probability of each response of the numbered rows."""
        found: list[list[float]] = []
        for start in range(0, len(numbers), self.batch_size):
            groups = [as_group_row(rows[number]) for number in numbers[start : start + self.batch_size]]
            batch = send_to_device(self.collator(list(map(dict, groups))), accelerator.device)
            with torch.no_grad(), accelerator.autocast():
                nll = self.backend.token_nll(self.model, Rows.from_batch(batch), self.token_nll.bound(self.model))
            sums = Responses.from_batch(batch).log_probabilities(nll.double())
            parts = torch.split(sums, [count_responses(group) for group in groups])
            found += [part.tolist() for part in parts]
        return found


@contextmanager
def reference_model(
    name: str, model: Any, backend: Backend, collator: GroupedResponseCollator, token_nll: TokenNLL, batch_size: int
) -> Iterator[Reference]:
    """Open the reference: the model without its adapters (`initial`), or another one by path or name.

    Raises:
        ValueError: if there is no such model, or its vocabulary has another size.
    """
    collator = replace(collator, find_responses=True)
    if name != INITIAL:
        check_model(name)
        other = AutoModelForCausalLM.from_pretrained(name, dtype=model.dtype).to(model.device).eval()
        own, theirs = (int(one.get_output_embeddings().weight.shape[0]) for one in (model, other))
        if own != theirs:
            raise ValueError(
                f"reference={name!r} has a vocabulary of {theirs:,} tokens and the model one of {own:,}: a reference "
                "needs the model's own tokenizer. Choose a model of the same family, or reference='initial'."
            )
        plain, alone = ExpandedBackend(), replace(collator, layout="expanded", packing=False)
        plain.prepare_model(other)
        yield Reference(other, plain, alone, TokenNLL(other), batch_size)
        return
    training = model.training
    model.eval()
    try:
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            yield Reference(model, backend, collator, token_nll, batch_size)
    finally:
        model.train(training)


def with_references(
    rows: Dataset, reference: Reference, accelerator: Accelerator, directory: str | Path | None, precision: str
) -> Dataset:
    """Return the rows with their reference log-probabilities, from the cache or computed by all processes."""
    folder = cache_directory(directory) / "references"

    def look_up() -> tuple[Path, Any]:
        content = f"{content_hash(rows.select_columns(list(COLUMNS)))} {fingerprint(reference.model)} {precision}"
        path = folder / f"{hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}.npy"
        return path, np.load(path) if path.is_file() else None

    path, values = from_main_process(accelerator, look_up)
    counts = [numbers[-1] + 1 for numbers in rows["segment_responses"]]
    if values is None:
        logger.info("Reference log-probabilities of %d groups: computing them once.", len(rows))
        count, index = accelerator.num_processes, accelerator.process_index
        own = reference.log_probabilities(rows, range(index, len(rows), count), accelerator)
        numbered = gather_object([(index + place * count, sums) for place, sums in enumerate(own)])
        values = np.array([value for _, sums in sorted(numbered) for value in sums])
        from_main_process(accelerator, lambda: _save(path, values))
    else:
        logger.info("Reference log-probabilities of %d groups: from %s.", len(rows), path)
    column = [
        _on_first_sequence(sums.tolist(), numbers)
        for sums, numbers in zip(np.split(values, np.cumsum(counts)[:-1]), rows["segment_responses"], strict=True)
    ]
    plain = rows.remove_columns(REFERENCES) if REFERENCES in rows.column_names else rows
    return plain.add_column(REFERENCES, column, feature=List(Value("float64")))


def _save(path: Path, values: np.ndarray) -> None:
    with whole_file(path) as file:
        np.save(file, values)


def _on_first_sequence(sums: list[float], numbers: list[int]) -> list[float]:
    """Return the value of each response on the first of its sequences, and 0 on the others."""
    before = [-1, *numbers[:-1]]
    return [sums[number] if number != last else 0.0 for number, last in zip(numbers, before, strict=True)]


def fingerprint(model: Any) -> str:
    """Return a hash of a model's configuration and weights, without those of its adapters."""
    state = hashlib.blake2b(str(model.config.to_json_string()).encode(), digest_size=16)
    adapter = model.base_model.prefix if isinstance(model, PeftModel) else None
    for name, value in model.state_dict().items():
        if adapter is not None and adapter in name:
            continue
        state.update(name.encode())
        if isinstance(value, torch.Tensor):
            state.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def attach_references(
    trainer: Any, settings: Any, collator: GroupedResponseCollator, backend: Backend, token_nll: TokenNLL
) -> None:
    """Give the trainer's training and held-out rows their reference log-probabilities."""
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    size = max(1, int(trainer.args.eval_batch_size))

    def attach(rows: Any) -> Any:
        ours = isinstance(rows, Dataset) and set(COLUMNS) <= set(rows.column_names)
        return add(rows) if ours else rows

    with reference_model(settings.reference, model, backend, collator, token_nll, size) as reference:
        add: Callable[[Dataset], Dataset] = lambda rows: with_references(  # noqa: E731
            rows, reference, accelerator, settings.score_cache, str(accelerator.mixed_precision)
        )
        trainer.train_dataset = attach(trainer.train_dataset)
        held_out = trainer.eval_dataset
        trainer.eval_dataset = (
            {name: attach(rows) for name, rows in held_out.items()} if isinstance(held_out, dict) else attach(held_out)
        )
