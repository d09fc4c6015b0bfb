"""Which of transformers' attention implementations a model's text part uses."""

from typing import Any

from mrt_plugin.attention.family import NotShareable


def text_attention(model: Any) -> str:
    """The implementation's name, e.g. `sdpa`. `model` may be a PeftModel."""
    name: str = model.config.get_text_config()._attn_implementation
    return name


def set_text_attention(model: Any, name: str) -> None:
    """Change it; the other parts of a composite model, such as a vision tower, keep theirs.

    Raises:
        NotShareable: if the model's code has its own attention, which cannot be exchanged.
    """
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
    """`sdpa`, or `eager` where the family needs what sdpa leaves out (soft-capping, which older releases of
    transformers drop without a word, and attention sinks)."""
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return "sdpa" if model._supports_sdpa and softcap is None else "eager"


def quiet_router(model: Any) -> dict[str, bool]:
    """Forward arguments that keep a mixture of experts from computing its load-balancing loss.

    That loss takes a 2-D mask only, and a backend without labels has no use for it.
    """
    asked = getattr(model.config.get_text_config(), "output_router_logits", False)
    return {"output_router_logits": False} if asked else {}
