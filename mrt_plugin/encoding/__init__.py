"""Encoding: chat template and tokenizer to token ids and loss masks."""
