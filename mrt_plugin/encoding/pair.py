"""One token sequence with what is trained of it: the output of encoding and the input of layout."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """One prompt with one response, or with its turns up to a trained one. `trained[t]` says whether the model is
    trained to produce `input_ids[t]`."""

    input_ids: Sequence[int]
    trained: Sequence[bool]

    @property
    def trained_length(self) -> int:
        return sum(self.trained)
