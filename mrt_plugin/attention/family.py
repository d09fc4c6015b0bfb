"""What a model family asks of attention, read from its configuration."""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


class NotShareable(ValueError):
    """This model cannot share a prompt exactly as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Family:
    """The facts that decide how a model may share a prompt."""

    model_type: str
    """transformers' name of the architecture."""
    kinds: tuple[str, ...]
    """The kinds of layer that the model has, e.g. `("full_attention", "sliding_attention")`, sorted."""
    window: int | None
    """Positions a sliding layer sees, the query's own included."""
    chunk: int | None
    """Positions per chunk of a chunked layer."""
    softcap: float | None
    """The bound that attention scores are squashed to, by softcap · tanh(score / softcap)."""
    head_size: int | None
    """Numbers per attention head; None where there are no heads."""
    dropout: float
    """Probability that training drops an attention weight."""

    @property
    def stateful(self) -> tuple[str, ...]:
        """The kinds of layer that carry a state along the row: no attention mask can separate responses there."""
        return tuple(kind for kind in self.kinds if kind not in (FULL, SLIDING, CHUNKED))


def read_family(config: PretrainedConfig) -> Family:
    """Read a configuration the way `transformers.masking_utils.create_masks_for_generate` does.

    Example:

    >>> from transformers import LlamaConfig
    >>> read_family(LlamaConfig()).kinds
    ('full_attention',)
    """
    text = config.get_text_config()
    # Configurations only carry the attributes that their family uses.
    window = getattr(text, "sliding_window", None)
    chunk = getattr(text, "attention_chunk_size", None)
    layer_types = getattr(text, "layer_types", None)
    if layer_types is not None:
        kinds = set(layer_types)
    elif window is not None:
        kinds = {SLIDING}
    elif chunk is not None:
        kinds = {CHUNKED}
    else:
        kinds = {FULL}
    dropouts = (
        getattr(text, name, None) for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
    )
    return Family(
        model_type=text.model_type,
        kinds=tuple(sorted(kinds)),
        window=window,
        chunk=chunk,
        softcap=getattr(text, "attn_logit_softcapping", None),
        head_size=_head_size(text),
        dropout=max(float(dropout or 0.0) for dropout in dropouts),
    )


def _head_size(text: Any) -> int | None:
    heads = getattr(text, "num_attention_heads", None)
    size: int | None = getattr(text, "head_dim", None)
    return size or (text.hidden_size // heads if heads else None)


def refuse_state(model: Any, backend: str) -> None:
    """Refuse a model whose class says that it carries a state along the row, whatever its configuration lists.

    Raises:
        NotShareable: naming the backend and the remedy.
    """
    if model._is_stateful:
        raise NotShareable(
            f"prefix_backend={backend}: {model.config.model_type} carries a state along the row, which an attention "
            "mask cannot separate. Use prefix_backend=fork or layout=expanded."
        )


def refuse_dropout(family: Family, backend: str) -> None:
    """Refuse a configuration with attention dropout, which fused shared-prefix attention leaves out.

    Raises:
        NotShareable: with the remedy.
    """
    if family.dropout:
        raise NotShareable(
            f"prefix_backend={backend}: {family.model_type} is configured with attention dropout {family.dropout:g}, "
            "which shared-prefix attention leaves out. Set attention_dropout (GPT-2: attn_pdrop) to 0 in the model's "
            "config, or use prefix_backend=dense or layout=expanded."
        )
