"""The seven controlled experiments of "Escaping the Mode Lottery" (arXiv 2606.00544), written anew."""
