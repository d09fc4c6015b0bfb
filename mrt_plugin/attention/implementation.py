"""Read and set the transformers attention implementation of a model's text part."""

from typing import Any

from mrt_plugin.attention.family import NotShareable


def text_attention(model: Any) -> str:
    """Return the implementation's name, e.g. `sdpa`. `model` may be a PeftModel."""
    name: str = model.config.get_text_config()._attn_implementation
    return name


def set_text_attention(model: Any, name: str) -> None:
    """Set the implementation of the text part. Other parts of a composite model, such as a vision tower, keep theirs.

    Raises:
        NotShareable: if the model's code has its own attention, which cannot be replaced.
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
    """Return `sdpa`, or `eager` where the family needs what sdpa does not compute.

    sdpa leaves out attention sinks and soft-capping. Older releases of transformers drop soft-capping silently.
    """
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return "sdpa" if model._supports_sdpa and softcap is None else "eager"


def quiet_router(model: Any) -> dict[str, bool]:
    """Return the forward arguments that turn off a mixture of experts' load-balancing loss.

    That loss accepts a 2-D mask only, and a backend passes no labels, so it does not need the loss.
    """
    asked = getattr(model.config.get_text_config(), "output_router_logits", False)
    return {"output_router_logits": False} if asked else {}
