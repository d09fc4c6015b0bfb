"""Encoding: token ids and loss masks from a chat template and a tokenizer."""

from mrt_plugin.encoding.encoder import Encoder
from mrt_plugin.encoding.messages import EncodingError
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.encoding.tokenizer import prepare_tokenizer

__all__ = ["Encoder", "EncodingError", "Pair", "prepare_tokenizer"]
