"""Results of a model for texts, from the cache or computed in batches of fixed shapes.

The shape of a matrix product decides its kernel, and so the last digits. Therefore a text's own length decides the
padded length, and that the number of rows. With 2, 3, 5, 21, 42 or 85 rows, the last row's last digit differed.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from mrt_plugin.scoring.cache import ScoreCache

T = TypeVar("T")

CHUNK = 8192
"""Number of texts that are sorted by length and processed together: about 12 MiB of vectors of 384 numbers."""


def through_cache(
    store: ScoreCache,
    items: Mapping[bytes, T],
    run: Callable[[list[T]], Iterable[tuple[list[int], np.ndarray]]],
    advance: Callable[[int], Any] = lambda count: None,
) -> dict[bytes, np.ndarray]:
    """Return each item's result by key, from the cache where it has it, else from `run` (indices and results).

    Each finished batch is stored at once, for a run that is killed. Results that are not finite are never stored.
    """
    found = store.get(list(items))
    advance(len(found))
    missing = [key for key in items if key not in found]
    for begin in range(0, len(missing), CHUNK):
        some = missing[begin : begin + CHUNK]
        for indices, results in run([items[key] for key in some]):
            done = {some[index]: result for index, result in zip(indices, results, strict=True)}
            if np.isfinite(results).all():
                store.put(done)
            found.update(done)
            advance(len(done))
    return found


def padded_length(length: int, longest: int | None = None) -> int:
    """Return the length that a text of `length` tokens is padded to: 16, 24, 32, 48, 64, 96, ..., up to `longest`."""
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size if longest is None else max(min(size, longest), length)


def fixed_batches(
    lengths: Sequence[int], *, tokens: int, longest: int | None = None
) -> Iterator[tuple[int, list[int], int]]:
    """Group texts of these lengths, at most `longest`, into batches of at most `tokens` tokens, the longest first.

    Yields the padded length, the indices of the texts, and the number of rows. Fill missing rows with any text.
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(padded_length(length, longest), []).append(index)
    for padded, indices in sorted(by_length.items(), reverse=True):
        fitting = tokens // padded
        rows = 1 if fitting < 4 else 1 << (fitting.bit_length() - 1)
        for begin in range(0, len(indices), rows):
            yield padded, indices[begin : begin + rows], rows


def tokens_at_once(device: torch.device) -> int:
    """Return the tokens of a batch, including padding: few on CPU, so that little is wasted on a pool of few texts."""
    return 2048 if device.type == "cpu" else 16384


def contents(model: torch.nn.Module, tokenizer: Any) -> tuple[bytes, bytes]:
    """Return a digest of a model's weights (a second per gigabyte), and all that affects how its tokenizer works."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if isinstance(tensor, torch.Tensor):
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return state.digest(), type(tokenizer).__name__.encode()
    words = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else str(sorted(tokenizer.get_vocab().items()))
    rest = (tokenizer.chat_template, tokenizer.padding_side, tokenizer.special_tokens_map)
    return state.digest(), f"{words} {rest}".encode()
