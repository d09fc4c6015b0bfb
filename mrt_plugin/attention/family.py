"""What a model needs from attention: its family's properties, its implementation, its adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel
from transformers import PretrainedConfig

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


class NotShareable(ValueError):
    """The model cannot share a prompt exactly with the requested options. The message says why and what to do."""


@dataclass(frozen=True)
class Family:
    """The properties that decide how a model may share a prompt."""

    model_type: str
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

    def limits(self, kind: str) -> dict[str, int | None]:
        """Return the window and the chunk of a kind of layer, as `masks.visibility` takes them."""
        return {"window": self.window if kind == SLIDING else None, "chunk": self.chunk if kind == CHUNKED else None}


def read_family(config: PretrainedConfig) -> Family:
    """Read a configuration in the same way as `transformers.masking_utils.create_masks_for_generate`."""
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
    """Return the common value of the layers that have one, or refuse layers that differ."""
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


def refuse_dropout(family: Family, backend: str) -> None:
    """Refuse a configuration with attention dropout, which fused shared-prefix attention does not apply."""
    if family.dropout:
        raise NotShareable(
            f"prefix_backend={backend}: {family.model_type} is configured with attention dropout {family.dropout:g}, "
            "which shared-prefix attention leaves out. Set attention_dropout (GPT-2: attn_pdrop) to 0 in the model's "
            "config, or use prefix_backend=dense or layout=expanded."
        )


def text_attention(model: Any) -> str:
    """Return the attention implementation of the text part, e.g. `sdpa`. `model` may be a PeftModel."""
    name: str = model.config.get_text_config()._attn_implementation
    return name


def set_text_attention(model: Any, name: str) -> None:
    """Set the implementation of the text part, or raise `NotShareable`. Other parts (a vision tower) keep theirs."""
    config = model.config
    text = config.get_text_config()
    if text._attn_implementation == name:
        return
    part = next((key for key in config.sub_configs if getattr(config, key) is text), None)
    model.set_attn_implementation(name if part is None else {part: name})
    if text._attn_implementation != name:
        raise NotShareable(
            f"{config.model_type} does not let its attention be exchanged (transformers' AttentionInterface). Use "
            "prefix_backend=fork or layout=expanded."
        )


def exact_attention(model: Any) -> str:
    """Return `sdpa`, or `eager` where the family needs what sdpa does not compute.

    sdpa leaves out attention sinks and soft-capping. Older releases of transformers drop soft-capping silently.
    """
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return "sdpa" if model._supports_sdpa and softcap is None else "eager"


def refuse_row_adapters(model: Any) -> None:
    """Refuse activated LoRA, which is active only from the last invocation tokens of a row on (`NotShareable`).

    An adapter that starts at zero changes nothing yet, so the proof before training cannot detect it.
    """
    for name, config in _adapters(model):
        if isinstance(config, LoraConfig) and config.alora_invocation_tokens:
            raise NotShareable(
                f"The adapter {name!r} is an activated LoRA, which is on from its invocation tokens to the end of a "
                "row, and a row holds several responses. Leave alora_invocation_tokens out, or use layout=expanded."
            )


def refuse_prompt_learning(model: Any) -> None:
    """Refuse prompt tuning, prefix tuning and p-tuning, which add virtual tokens to each row (`ValueError`)."""
    for name, config in _adapters(model):
        if config.is_prompt_learning:
            raise ValueError(
                f"The adapter {name!r} ({config.peft_type.value}) puts virtual tokens in front of each row, where "
                "positions and labels of groups do not expect them. Use LoRA or another adapter of the layers."
            )


def _adapters(model: Any) -> list[tuple[str, Any]]:
    return list(model.peft_config.items()) if isinstance(model, PeftModel) else []
