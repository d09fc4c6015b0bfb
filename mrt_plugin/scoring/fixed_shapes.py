"""Batches of fixed shapes, so that a model's result for a text does not depend on the other texts in the batch.

The shape of a matrix product decides which kernel computes it, and so the last digits of the result. Therefore a text
is always padded to a length that depends only on its own length. A batch of that length always has the same number of
rows. A text then gets the same numbers, bit for bit, with any other texts and at any place in the batch. This holds on
the same machine with the same number of threads.

The number of rows is 1, or a power of two that is at least 4. Kernels process rows in blocks and compute the remaining
rows differently, so with other numbers a result would depend on the place in the batch. This was measured on a layer
with one output, like the last layer of a reward model. For the same text, the last of 85 rows differed from the first
in the last digit. The same happened with 2, 3, 5, 21 and 42 rows.
"""

from collections.abc import Iterator, Sequence

TOKENS_CPU = 2048
"""Tokens of a batch on CPU, including padding. Small, so that little work is wasted on a pool of a few texts."""

TOKENS_GPU = 16384


def padded_length(length: int, longest: int | None = None) -> int:
    """Return the length that a text of `length` tokens is padded to: 16, 24, 32, 48, 64, 96, ..., up to `longest`.

    Example:

    >>> [padded_length(length) for length in (1, 17, 24, 33, 100, 129)]
    [16, 24, 24, 48, 128, 192]
    """
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size if longest is None else max(min(size, longest), length)


def fixed_batches(
    lengths: Sequence[int], *, tokens: int, longest: int | None = None
) -> Iterator[tuple[int, list[int], int]]:
    """Group texts of similar length into batches.

    Args:
        lengths: tokens of each text.
        tokens: maximum tokens of a batch, including padding.
        longest: the model's limit, in tokens. No text exceeds it.

    Yields:
        The padded length, the indices of the texts, and the number of rows that the batch must have. Fill missing
        rows with any text. Long texts come first, so that a machine with too little memory fails immediately.

    Example:

    >>> list(fixed_batches([3, 30, 5], tokens=64))
    [(32, [1], 1), (16, [0, 2], 4)]
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(padded_length(length, longest), []).append(index)
    for padded, indices in sorted(by_length.items(), reverse=True):
        fitting = tokens // padded
        rows = 1 if fitting < 4 else 1 << (fitting.bit_length() - 1)
        for begin in range(0, len(indices), rows):
            yield padded, indices[begin : begin + rows], rows
