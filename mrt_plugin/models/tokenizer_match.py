"""Whether a tokenizer is a model's own: what can be told from token ids, and from a loss."""

import math
from collections.abc import Iterable

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.models.log_likelihood import Model

GUESSING = 1.2
"""A mean NLL per token above this many times ln(vocabulary) says that the model knows less than nothing."""


def vocabulary(model: Model) -> int:
    """The rows of a model's embeddings."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[union-attr, index, arg-type]


def check_ids(pairs: Iterable[Pair], model: Model) -> None:
    """Raise ValueError if a token has no embedding."""
    rows = vocabulary(model)
    highest = max((max(pair.input_ids) for pair in pairs), default=0)
    if highest >= rows:
        raise ValueError(
            f"The tokenizer gives token {highest}, and the model has embeddings for {rows} tokens: this tokenizer is "
            "not the model's. Give the folder or name that holds both."
        )


def worse_than_guessing(nll_per_token: float, model: Model) -> str | None:
    """A sentence if the loss is that of a model which is read with another's tokenizer; None otherwise."""
    rows = vocabulary(model)
    if nll_per_token <= GUESSING * math.log(rows):
        return None
    return (
        f"The model's loss is {nll_per_token:.2f} nats per token, and guessing among its {rows:,} tokens "
        f"has {math.log(rows):.2f}: is this tokenizer the model's?"
    )
