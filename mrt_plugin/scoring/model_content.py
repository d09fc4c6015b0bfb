"""Digests of a model's weights and tokenizer, for the keys of the cache. They do not depend on the model's name."""

import hashlib
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


def model_content(model: torch.nn.Module) -> bytes:
    """Return a digest of all weights. Takes about a second per gigabyte. Further training changes the digest."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if isinstance(tensor, torch.Tensor):
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.digest()


def tokenizer_content(tokenizer: Any) -> bytes:
    """Return everything that affects how a tokenizer converts a text, as bytes."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return type(tokenizer).__name__.encode()
    words = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else str(sorted(tokenizer.get_vocab().items()))
    rest = (tokenizer.chat_template, tokenizer.padding_side, tokenizer.special_tokens_map)
    return f"{words} {rest}".encode()
