"""What a model family needs from attention, read from its configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


class NotShareable(ValueError):
    """The model cannot share a prompt exactly with the requested options. The message says why and what to do."""


@dataclass(frozen=True)
class Family:
    """The properties that decide how a model may share a prompt."""

    model_type: str
    """transformers' name of the architecture."""
    kinds: tuple[str, ...]
    """The kinds of layer that the model has, e.g. `("full_attention", "sliding_attention")`, sorted."""
    window: int | None
    """Number of positions that a sliding layer sees, including the query's own."""
    chunk: int | None
    """Positions per chunk of a chunked layer."""
    softcap: float | None
    """The bound of attention scores, applied as softcap · tanh(score / softcap)."""
    head_size: int | None
    """Dimension of an attention head, in the layer with the largest; None where there are no heads."""
    dropout: float
    """Probability that training drops an attention weight."""

    @property
    def stateful(self) -> tuple[str, ...]:
        """The kinds of layer that carry a state along the row. No attention mask can separate responses there."""
        return tuple(kind for kind in self.kinds if kind not in (FULL, SLIDING, CHUNKED))


def read_family(config: PretrainedConfig) -> Family:
    """Read a configuration in the same way as `transformers.masking_utils.create_masks_for_generate`.

    Example:

    >>> from transformers import LlamaConfig
    >>> read_family(LlamaConfig()).kinds
    ('full_attention',)
    """
    text = config.get_text_config(decoder=True)
    layers = list(text.per_layer_config) if text.is_heterogeneous else [text]
    # A configuration has only the attributes that its family uses.
    layer_types = getattr(text, "layer_types", None)
    sizes = [size for size in map(_head_size, layers) if size]
    dropouts = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
    return Family(
        model_type=text.model_type,
        kinds=tuple(sorted(set(layer_types or map(_kind, layers)))),
        window=_common(layers, "sliding_window"),
        chunk=_common(layers, "attention_chunk_size"),
        softcap=_common(layers, "attn_logit_softcapping"),
        head_size=max(sizes, default=None),
        dropout=max(float(getattr(layer, name, None) or 0.0) for layer in layers for name in dropouts),
    )


def _kind(layer: Any) -> str:
    if getattr(layer, "sliding_window", None) is not None:
        return SLIDING
    return FULL if getattr(layer, "attention_chunk_size", None) is None else CHUNKED


def _common(layers: Sequence[Any], name: str) -> Any:
    """Return the common value of the layers that have one.

    Raises:
        NotShareable: if the value differs between layers.
    """
    values = {value for layer in layers if (value := getattr(layer, name, None)) is not None}
    if len(values) > 1:
        raise NotShareable(
            f"The layers of {layers[0].model_type} differ in {name} ({', '.join(map(str, sorted(values)))}), and the "
            "shared-prefix backends know one value for all. Use layout=expanded."
        )
    return values.pop() if values else None


def _head_size(layer: Any) -> int | None:
    heads = getattr(layer, "num_attention_heads", None)
    size: int | None = getattr(layer, "head_dim", None)
    return size or (layer.hidden_size // heads if heads else None)


def refuse_state(model: Any, backend: str) -> None:
    """Refuse a model whose class declares a state along the row, even if its configuration lists no such layer.

    Raises:
        NotShareable: the message names the backend and says what to do.
    """
    if model._is_stateful:
        raise NotShareable(
            f"prefix_backend={backend}: {model.config.model_type} carries a state along the row, which an attention "
            "mask cannot separate. Use prefix_backend=fork or layout=expanded."
        )


def refuse_dropout(family: Family, backend: str) -> None:
    """Refuse a configuration with attention dropout, which fused shared-prefix attention does not apply.

    Raises:
        NotShareable: the message says what to do.
    """
    if family.dropout:
        raise NotShareable(
            f"prefix_backend={backend}: {family.model_type} is configured with attention dropout {family.dropout:g}, "
            "which shared-prefix attention leaves out. Set attention_dropout (GPT-2: attn_pdrop) to 0 in the model's "
            "config, or use prefix_backend=dense or layout=expanded."
        )
