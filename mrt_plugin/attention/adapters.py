"""Refuse adapters that depend on a token's place in its row. They do not fit rows of several responses.

An adapter that starts at zero changes nothing yet, so the proof before training cannot detect these adapters. They
are refused by name.
"""

from typing import Any

from peft import LoraConfig, PeftModel

from mrt_plugin.attention.family import NotShareable


def refuse_row_adapters(model: Any) -> None:
    """Refuse activated LoRA, which is active only from the last invocation tokens of a row on.

    Raises:
        NotShareable: the message says what to do.
    """
    for name, config in _adapters(model):
        if isinstance(config, LoraConfig) and config.alora_invocation_tokens:
            raise NotShareable(
                f"The adapter {name!r} is an activated LoRA, which is on from its invocation tokens to the end of a "
                "row, and a row holds several responses. Leave alora_invocation_tokens out, or use layout=expanded."
            )


def refuse_prompt_learning(model: Any) -> None:
    """Refuse prompt tuning, prefix tuning and p-tuning: they put virtual tokens in front of each row.

    Raises:
        ValueError: the message says what to do.
    """
    for name, config in _adapters(model):
        if config.is_prompt_learning:
            raise ValueError(
                f"The adapter {name!r} ({config.peft_type.value}) puts virtual tokens in front of each row, where "
                "positions and labels of groups do not expect them. Use LoRA or another adapter of the layers."
            )


def _adapters(model: Any) -> list[tuple[str, Any]]:
    return list(model.peft_config.items()) if isinstance(model, PeftModel) else []
