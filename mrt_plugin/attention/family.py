"""What a model family asks of attention, read from its configuration."""

from collections.abc import Sequence
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
    """Numbers per attention head, of the layer with the most; None where there are no heads."""
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
    text = config.get_text_config(decoder=True)
    layers = list(text.per_layer_config) if text.is_heterogeneous else [text]
    # Configurations only carry the attributes that their family uses.
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
    """The value of the layers that have one.

    Raises:
        NotShareable: if it differs between layers.
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
