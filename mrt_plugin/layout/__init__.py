"""Layout: turns encoded groups into the rows of tokens that a model sees."""
