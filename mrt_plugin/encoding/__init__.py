"""Encoding: token ids and loss masks from a chat template and a tokenizer."""

from mrt_plugin.encoding.encoder import Encoder, prepare_tokenizer
from mrt_plugin.encoding.messages import EncodingError
from mrt_plugin.encoding.pair import Pair

__all__ = ["Encoder", "EncodingError", "Pair", "prepare_tokenizer"]
