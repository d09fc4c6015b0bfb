"""Check from token ids and from a loss whether a tokenizer belongs to a model."""

import math
from collections.abc import Iterable

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.models.log_likelihood import Model

GUESSING = 1.2
"""A mean NLL per token above this factor times ln(vocabulary), the NLL of uniform guessing, suggests a mismatch."""


def vocabulary(model: Model) -> int:
    """Return the number of rows of a model's embedding."""
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
    """Return a warning if the loss suggests that the tokenizer belongs to another model, else None."""
    rows = vocabulary(model)
    if nll_per_token <= GUESSING * math.log(rows):
        return None
    return (
        f"The model's loss is {nll_per_token:.2f} nats per token, and guessing among its {rows:,} tokens "
        f"has {math.log(rows):.2f}: is this tokenizer the model's?"
    )
