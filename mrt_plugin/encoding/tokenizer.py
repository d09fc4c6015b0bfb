"""Check and prepare the tokenizer for encoding."""

import logging
from typing import TYPE_CHECKING

from mrt_plugin.encoding.messages import EncodingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `EncodingError` for a slow tokenizer, which has no character offsets."""
    if not tokenizer.is_fast:
        raise EncodingError(
            f"{type(tokenizer).__name__} is a slow tokenizer, without the character offsets that locate a response's "
            "tokens. Load the fast one: AutoTokenizer.from_pretrained(..., use_fast=True), after converting it if the "
            "model has no tokenizer.json."
        )


def prepare_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Set a missing pad token in place, and return the tokenizer. The padding side is not changed.

    EOS becomes the pad token. Padding is masked by position, and labels are marked before padding. So EOS is still
    trained at the end of responses, and never as padding.

    Raises:
        EncodingError: for a slow tokenizer, or one with neither a pad nor an EOS token.

    Example:

    ```python
    from transformers import AutoTokenizer
    from mrt_plugin.encoding import prepare_tokenizer

    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained("meta-llama/Llama-3.2-1B"))
    tokenizer.pad_token  # '<|end_of_text|>'
    ```
    """
    check_tokenizer(tokenizer)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise EncodingError(
                "The tokenizer has neither a pad nor an EOS token: set tokenizer.pad_token (and tokenizer.eos_token, "
                "which ends a response) to tokens of its vocabulary."
            )
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("The tokenizer has no pad token: its EOS %r pads. EOS stays trained.", tokenizer.eos_token)
    return tokenizer


def special_token_texts(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the texts of all special tokens, the longest first."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text))
