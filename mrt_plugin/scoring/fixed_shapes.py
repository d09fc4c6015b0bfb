"""Batches of fixed shapes, so that what a model answers for a text does not depend on the texts beside it.

The kernels of a matrix product depend on its shape, and with them the last digits of the result. So a text is always
padded to a length that depends on its own length alone, and a batch of that length always has the same number of
rows: a text gets the same numbers, bit for bit, in any company and at any place, on the same machine with the same
number of threads. At any place, because that number is 1 or a power of two from 4 on: the kernels take rows in blocks,
and compute what is left over in another way (measured: a layer with one output, as a reward model ends in, gave the
last of 85 rows another last digit than the first, for the same text; so did 2, 3, 5, 21 and 42 rows).
"""

from collections.abc import Iterator, Sequence

TOKENS_CPU = 2048
"""Tokens of a batch, padding included: little is lost on a pool of a few texts."""

TOKENS_GPU = 16384


def padded_length(length: int, longest: int | None = None) -> int:
    """The length that a text of `length` tokens is padded to: 16, 24, 32, 48, 64, 96, ..., at most `longest`.

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
    """Texts of similar length together.

    Args:
        lengths: tokens of each text.
        tokens: what a batch may hold, padding included.
        longest: the model's limit, that no text exceeds.

    Yields:
        The padded length, the indices of the texts, and the rows that the batch must have: fill it with any text.
        Long texts come first, so that a machine with too little memory fails at once.

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
