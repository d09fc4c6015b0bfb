"""Advice for out-of-memory errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ADVICE = (
    "Out of memory. Lower, in this order: per_device_train_batch_size (in Axolotl micro_batch_size) while raising "
    "gradient_accumulation_steps, which leaves a step what it is; row_length and max_length; k. Or save memory: "
    "gradient_checkpointing, a 4-bit base model (QLoRA), an 8-bit optimizer; of sampled answers, samples_per_prompt "
    "and sample_tokens. `mrt doctor recipe.yaml` estimates what a recipe needs."
)


@contextmanager
def out_of_memory_advice() -> Iterator[None]:
    """Add advice to an out-of-memory error.

    Raises:
        torch.OutOfMemoryError: with the advice and the allocator's message. On a CPU PyTorch itself raises a plain
            RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise torch.OutOfMemoryError(f"{ADVICE}\n{error}") from error
        raise
