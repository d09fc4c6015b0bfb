"""Rows: how an encoded group becomes the tokens that a model sees."""
