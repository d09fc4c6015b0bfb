"""What a model is, whatever it is called: a digest of its weights and of its tokenizer, for the keys of the cache."""

import hashlib
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


def model_content(model: torch.nn.Module) -> bytes:
    """A digest of every weight: about a second per gigabyte. A model that was trained on gets another."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if isinstance(tensor, torch.Tensor):
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.digest()


def tokenizer_content(tokenizer: Any) -> bytes:
    """All that decides what a tokenizer makes of a text, spelled out."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return type(tokenizer).__name__.encode()
    words = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else str(sorted(tokenizer.get_vocab().items()))
    rest = (tokenizer.chat_template, tokenizer.padding_side, tokenizer.special_tokens_map)
    return f"{words} {rest}".encode()
