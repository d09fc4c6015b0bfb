"""Reimplementation of the seven controlled experiments of "Escaping the Mode Lottery" (arXiv 2606.00544)."""
